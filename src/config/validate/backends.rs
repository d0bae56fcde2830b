//! The fleet: each backend alone, and that no two share a name.

use std::{collections::HashMap, sync::Arc};

use super::Validator;
use crate::{
    config::{Backend, BackendUrl, Capacity, ClientTls, Concurrency, Models, Scheme, file, secret::short, url},
    protocol::engine::Engine,
};

impl Validator<'_> {
    pub(super) fn backends(&mut self, written: &[file::Backend]) -> Vec<Arc<Backend>> {
        if self.source.was_given("", "backends") {
            return Vec::new();
        }
        if written.is_empty() && !self.source.is_set("backends") {
            self.error("", "no backends", "add `backends: [{url: http://host:port}]`");
        } else if written.is_empty() {
            self.error("backends", "no backends", "add `- url: http://host:port`");
        }
        let mut names: HashMap<Arc<str>, usize> = HashMap::new();
        let mut backends = Vec::new();
        for (i, backend) in written.iter().enumerate() {
            let Some(backend) = self.backend(i, backend) else { continue };
            match names.get(&backend.name) {
                None => {
                    names.insert(Arc::clone(&backend.name), i);
                }
                Some(first) => {
                    let named = written[i].name.is_some();
                    let path = if named { format!("backends[{i}].name") } else { format!("backends[{i}].url") };
                    let line = self.source.line(&format!("backends[{first}]"));
                    let help = match (named, line) {
                        (false, _) => "give each a `name`".to_owned(),
                        (true, Some(line)) => format!("the first is in line {line}"),
                        (true, None) => "give each its own".to_owned(),
                    };
                    self.error(&path, format!("two backends are called `{}`", backend.name), help);
                }
            }
            backends.push(Arc::new(backend));
        }
        backends
    }

    fn backend(&mut self, i: usize, written: &file::Backend) -> Option<Backend> {
        let path = format!("backends[{i}]");
        let at = |field: &str| format!("{path}.{field}");
        let name = self.name(&at("name"), written.name.as_deref());
        let zone = self.name(&at("zone"), written.zone.as_deref());
        let api_key = self.secret(&path, "api_key", written.api_key.as_ref(), written.api_key_file.as_deref());
        let (token, file) = (written.interruption_token.as_ref(), written.interruption_token_file.as_deref());
        let interruption_token = self.secret(&path, "interruption_token", token, file);
        if let Some(file::AutoOr::Number(0)) = written.max_concurrency {
            self.error(&at("max_concurrency"), "0 would let no call through", "take it out for no limit");
        }
        if let Some(price) = &written.price {
            self.price(&path, price);
        }
        let models = self.models(&path, &written.models);
        let url = match &written.url {
            Some(url) => self.parsed(&at("url"), url, url::backend),
            None => {
                if !self.source.was_given(&path, "url") {
                    self.error(&path, "a backend without `url`", "add `url: http://host:port`");
                }
                None
            }
        };
        let tls = self.client_tls(&path, written.tls.as_ref(), url.as_ref());
        let url = url?;
        self.base_path(&at("url"), &url);
        Some(Backend {
            name: name.unwrap_or_else(|| default_name(&url)),
            url,
            engine: engine(written.engine),
            capacity: capacity(written.capacity),
            zone,
            models,
            max_concurrency: match written.max_concurrency {
                None => Concurrency::Unlimited,
                Some(file::AutoOr::Auto) => Concurrency::Auto,
                Some(file::AutoOr::Number(n)) => Concurrency::Limit(n),
            },
            api_key,
            interruption_token,
            tls,
        })
    }

    /// Bytes that leave a zone are charged for: is it known which do?
    pub(super) fn zones(&mut self, own: Option<&str>, backends: &[Arc<Backend>]) {
        let first = backends.iter().find_map(|backend| backend.zone.as_deref());
        let several = backends.iter().filter_map(|backend| backend.zone.as_deref()).any(|zone| Some(zone) != first);
        match own {
            None if several => self.warn(
                "backends",
                "they are in several zones, and it is not known in which this gateway runs",
                "set `zone`, so that its own is preferred and bytes that leave it are counted",
            ),
            None => {}
            Some(own) => {
                for (i, backend) in backends.iter().enumerate() {
                    match backend.zone.as_deref() {
                        Some(zone) if zone != own => self.warn(
                            &format!("backends[{i}].zone"),
                            format!("bytes between `{zone}` and this gateway's `{own}` are charged for by most clouds"),
                            "it gets calls when the backends of the own zone have no room",
                        ),
                        None if first.is_some() => self.warn(
                            &format!("backends[{i}]"),
                            "no `zone`, where others have one",
                            "name it, so that its bytes are counted where they belong",
                        ),
                        _ => {}
                    }
                }
            }
        }
    }

    /// Paths of clients begin with `/v1` themselves: the commonest mistake of all.
    fn base_path(&mut self, path: &str, url: &BackendUrl) {
        if let Some(before) = url.base_path.strip_suffix("/v1") {
            let meant = BackendUrl { base_path: Arc::from(before), ..url.clone() };
            self.warn(path, "calls would go to `/v1/v1/…`", format!("did you mean `{meant}`?"));
        }
    }

    fn price(&mut self, path: &str, price: &file::Price) {
        for (field, value) in [("per_hour", price.per_hour), ("on_demand_per_hour", price.on_demand_per_hour)] {
            if value.is_some_and(|v| !v.is_finite() || v < 0.0) {
                self.error(&format!("{path}.price.{field}"), "is not a price", "write a number from 0");
            }
        }
    }

    fn models(&mut self, path: &str, models: &file::Models) -> Models {
        match models {
            file::Models::Auto => Models::Auto,
            file::Models::Any => Models::Any,
            file::Models::List(list) => {
                if list.is_empty() {
                    self.error(&format!("{path}.models"), "the list is empty", "name a model, or use `auto` or `any`");
                }
                for (i, _) in list.iter().enumerate().filter(|(_, model)| model.trim().is_empty()) {
                    self.error(&format!("{path}.models[{i}]"), "a model needs a name", "");
                }
                Models::List(list.iter().map(|m| Arc::from(m.as_str())).collect())
            }
        }
    }

    fn client_tls(&mut self, path: &str, written: Option<&file::ClientTls>, url: Option<&BackendUrl>) -> ClientTls {
        let Some(tls) = written else { return ClientTls::default() };
        let path = format!("{path}.tls");
        if url.is_some_and(|url| url.scheme != Scheme::Https) {
            self.error(&path, "`tls` has no effect on this URL", "use `https://` in `url`, or take `tls` out");
        }
        match (&tls.client_cert, &tls.client_key) {
            (Some(_), None) => self.error(&path, "`client_cert` needs `client_key`", "name the PEM file of the key"),
            (None, Some(_)) => {
                self.error(&path, "`client_key` needs `client_cert`", "name the PEM file of the certificate");
            }
            _ => {}
        }
        let mut file =
            |field: &str, file: &Option<String>| file.as_ref().map(|file| self.file(&format!("{path}.{field}"), file));
        let ca = file("ca", &tls.ca);
        let client_cert = file("client_cert", &tls.client_cert);
        let client_key = file("client_key", &tls.client_key);
        if let Some(name) = &tls.server_name
            && rustls_pki_types::ServerName::try_from(name.as_str()).is_err()
        {
            let reason = format!("`{}` is not the name of a server", short(name));
            self.error(&format!("{path}.server_name"), reason, "use a DNS name or an IP address");
        }
        ClientTls { ca, client_cert, client_key, server_name: tls.server_name.clone() }
    }
}

/// `host:port`, or the name of the socket's file.
fn default_name(url: &BackendUrl) -> Arc<str> {
    match &url.unix {
        Some(path) => Arc::from(path.file_name().unwrap_or_default().to_string_lossy()),
        None if url.host.contains(':') => Arc::from(format!("[{}]:{}", url.host, url.port)),
        None => Arc::from(format!("{}:{}", url.host, url.port)),
    }
}

fn engine(written: file::Engine) -> Option<Engine> {
    match written {
        file::Engine::Auto => None,
        file::Engine::Vllm => Some(Engine::Vllm),
        file::Engine::Sglang => Some(Engine::Sglang),
        file::Engine::LlamaCpp => Some(Engine::LlamaCpp),
        file::Engine::Tgi => Some(Engine::Tgi),
        file::Engine::Ollama => Some(Engine::Ollama),
        file::Engine::Triton => Some(Engine::Triton),
        file::Engine::OpenAi => Some(Engine::OpenAi),
    }
}

fn capacity(written: file::Capacity) -> Capacity {
    match written {
        file::Capacity::Spot => Capacity::Spot,
        file::Capacity::OnDemand => Capacity::OnDemand,
        file::Capacity::Reserved => Capacity::Reserved,
    }
}

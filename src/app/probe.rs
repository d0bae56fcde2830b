//! The control plane's questions to backends, over its own client.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

use http::{HeaderMap, HeaderValue, header, uri::PathAndQuery};

use crate::{
    client::{self, Client, Counters, Failure, Resolver, Stage, Target},
    config::{Backend, BackendUrl, ClientTls, Config},
    control::{Answer, Ask, Engines, Fault},
    protocol::engine::{self, Engine},
    proxy::headers::Via,
    runtime::ticker::Ticker,
};

/// A model list is at most this large.
const LARGEST: usize = 4 << 20;

type Targets = HashMap<(BackendUrl, ClientTls), Arc<Target>>;

/// Sends [`Ask`]s. Cheap to clone.
#[derive(Clone)]
pub(super) struct Asker {
    client: Client,
    targets: Rc<RefCell<Targets>>,
    /// A gateway on the backend's machine tells those who come by a gateway whether it goes.
    via: Option<HeaderValue>,
}

impl Asker {
    /// With a client as the configuration wants it.
    pub(super) fn of(config: &Config, ticker: Ticker) -> Self {
        let settings = client::Settings::new(config.health.timeout, config.limits.header_bytes);
        Self::new(Client::new(settings, ticker, Resolver::system(), Counters::noop()))
    }

    fn new(client: Client) -> Self {
        Self { client, targets: Rc::default(), via: None }
    }

    /// The same in this gateway's name.
    pub(super) fn through(self, via: &Via) -> Self {
        Self { via: Some(via.own().clone()), ..self }
    }

    pub(super) async fn ask(&self, ask: Ask) -> Result<Answer, Fault> {
        let target = self.target(&ask.backend)?;
        let path = PathAndQuery::try_from(ask.path).map_err(|e| Fault::Other(e.to_string()))?;
        let mut headers = credentials(&ask.backend);
        if let Some(via) = &self.via {
            headers.insert(header::VIA, via.clone());
        }
        let (head, body) =
            self.client.get(&target, &path, &headers, LARGEST).await.map_err(|f| fault(&f, &ask.backend))?;
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    fn target(&self, backend: &Backend) -> Result<Arc<Target>, Fault> {
        let key = (backend.url.clone(), backend.tls.clone());
        if let Some(target) = self.targets.borrow().get(&key) {
            return Ok(Arc::clone(target));
        }
        let target = Target::new(&key.0, &key.1).map_err(|e| Fault::Unreachable(e.to_string()))?;
        self.targets.borrow_mut().insert(key, Arc::clone(&target));
        Ok(target)
    }
}

fn credentials(backend: &Backend) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let bearer = backend.api_key.as_ref().map(|key| HeaderValue::try_from(format!("Bearer {}", key.reveal())));
    if let Some(Ok(mut bearer)) = bearer {
        bearer.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, bearer);
    }
    headers
}

fn fault(failure: &Failure, backend: &Backend) -> Fault {
    let text = failure.cause.to_string();
    match failure.stage {
        Stage::Connect => Fault::Unreachable(format!("{}: {text}", backend.name)),
        Stage::Unsent | Stage::Reset => Fault::Reset(text),
        Stage::Protocol | Stage::Request => Fault::Other(text),
    }
}

/// What is known of engines.
pub(super) const ENGINES: Engines = Engines {
    detect: engine::detect,
    detect_by_info: engine::detect_by_info,
    health_path: Engine::health_path,
    models: |body| {
        let listed = engine::parse_models(body).ok()?;
        Some(listed.iter().map(|model| Arc::from(&*model.id)).collect())
    },
    waiting: |engine| engine.load_metrics().map(|metrics| metrics.waiting),
};

//! Addresses: of backends, listeners, networks and origins. Each error says what is wrong and what to do; none
//! repeats credentials.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use super::{BackendUrl, Cidr, Listen, Notify, Redis, Scheme, Secret, secret::short};
use crate::protocol::query::percent_decode;

/// What is wrong, and what to do.
pub(super) type Wrong = (String, Option<String>);

fn wrong<T>(reason: String, help: impl Into<String>) -> Result<T, Wrong> {
    Err((reason, Some(help.into())))
}

/// Linux takes 108 bytes with the closing zero.
const MAX_SOCKET_PATH: usize = 107;

/// `http://host:port/base`, `https://…`, `h2c://…`, `unix:/path`.
pub(super) fn backend(text: &str) -> Result<BackendUrl, Wrong> {
    if let Some(path) = text.strip_prefix("unix:") {
        let path = socket_path(path)?;
        return Ok(BackendUrl {
            scheme: Scheme::Unix,
            host: Arc::from(""),
            port: 0,
            unix: Some(path),
            base_path: Arc::from(""),
        });
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return match text.is_empty() || text.contains(char::is_whitespace) {
            true => wrong(format!("`{}` is not a URL", short(text)), "write it as `http://host:port`"),
            false => {
                wrong(format!("`{}` has no scheme", short(text)), format!("did you mean `http://{}`?", short(text)))
            }
        };
    };
    let (scheme, default_port) = match scheme.to_ascii_lowercase().as_str() {
        "http" => (Scheme::Http, 80),
        "https" => (Scheme::Https, 443),
        "h2c" => (Scheme::H2c, 80),
        "grpc" => return wrong("`grpc` is not a scheme of backends".into(), "did you mean `h2c`?"),
        other => {
            return wrong(
                format!("`{}` is not a scheme of backends", short(other)),
                "use `http`, `https`, `h2c` or `unix`",
            );
        }
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.contains('@') {
        return wrong("a URL must not hold credentials".into(), "use `api_key` or `api_key_file`");
    }
    if path.contains(['?', '#']) {
        return wrong("the URL of a backend has no query or fragment".into(), "end it behind the path");
    }
    let (host, port) = host_port(authority)?;
    let base_path = path.trim_end_matches('/');
    if base_path.bytes().any(|b| !(0x21..0x7f).contains(&b)) {
        return wrong("the path has characters that a URL cannot have".into(), "write them as %XX");
    }
    Ok(BackendUrl {
        scheme,
        host: Arc::from(host),
        port: port.unwrap_or(default_port),
        unix: None,
        base_path: Arc::from(base_path),
    })
}

fn socket_path(path: &str) -> Result<PathBuf, Wrong> {
    let path = path.strip_prefix("//").unwrap_or(path);
    if !path.starts_with('/') {
        return wrong("a unix socket needs an absolute path".into(), "write `unix:/path/to/socket`");
    }
    if path.len() > MAX_SOCKET_PATH {
        return wrong(format!("the path of a unix socket has {MAX_SOCKET_PATH} bytes at most"), "use a shorter path");
    }
    Ok(PathBuf::from(path))
}

/// `redis://user:password@host:port/database`, with TLS `rediss://`. All of it is a secret: nothing is repeated.
pub(super) fn redis(text: &str) -> Result<Redis, Wrong> {
    let help = "write it as `redis://host:6379`, with TLS `rediss://host:6379`";
    let (scheme, rest) = text.split_once("://").unwrap_or_default();
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "redis" | "valkey" => false,
        "rediss" | "valkeys" => true,
        _ => return wrong("not the URL of a Redis".into(), help),
    };
    if rest.contains(['?', '#']) {
        return wrong("the URL of a Redis has no query or fragment; they are %3F and %23 in a password".into(), help);
    }
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    if database.contains('@') {
        return wrong("the host of a Redis has `/` before it; in a password it is %2F".into(), help);
    }
    let (who, place) = match authority.rsplit_once('@') {
        Some((who, place)) => (who, place),
        None => ("", authority),
    };
    // The place alone: it is told in errors.
    let (host, port) = host_port(place).map_err(|(reason, _)| (reason, Some(help.to_owned())))?;
    let Ok(database) = (if database.is_empty() { Ok(0) } else { database.parse() }) else {
        return wrong("behind the host of a Redis goes the number of its database".into(), "such as `/0`");
    };
    let (username, password) = who.split_once(':').unwrap_or((who, ""));
    let (username, password) = (given(username), given(password));
    if username.is_some() && password.is_none() {
        return wrong("the URL has a user and no password".into(), "write `redis://:password@host` without a user");
    }
    Ok(Redis {
        tls,
        host: Arc::from(host),
        port: port.unwrap_or(6379),
        username,
        password: password.map(Secret::new),
        database,
    })
}

/// What stands in a URL as `%XX`; nothing where nothing stands.
fn given(text: &str) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| Arc::from(&*percent_decode(text, false)))
}

/// `host`, `host:port`, `[v6]:port` → host without brackets.
fn host_port(authority: &str) -> Result<(String, Option<u16>), Wrong> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let Some((host, port)) = rest.split_once(']') else {
            return wrong("`[` has no `]`".into(), "write IPv6 addresses as `[::1]:8000`");
        };
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return wrong(format!("`{}` is not an IPv6 address", short(host)), "write it as `[::1]:8000`");
        }
        match port.strip_prefix(':') {
            None if !port.is_empty() => return wrong("text behind `]`".into(), "write it as `[::1]:8000`"),
            port => (host, port),
        }
    } else {
        match authority.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return wrong("an IPv6 address needs brackets".into(), "write it as `[::1]:8000`");
            }
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() {
        return wrong("the URL has no host".into(), "write it as `http://host:port`");
    }
    let named = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:".contains(&b)) && host.len() <= 253;
    if !named {
        return wrong(format!("`{}` is not the name of a host", short(host)), "use a DNS name or an IP address");
    }
    let port = match port {
        None | Some("") => None,
        Some(port) => match port.parse::<u16>() {
            Ok(port) if port > 0 => Some(port),
            _ => return wrong(format!("`{}` is not a port", short(port)), "ports go from 1 to 65535"),
        },
    };
    Ok((host.to_ascii_lowercase(), port))
}

/// `host:port` or `unix:/path` to listen on.
pub(super) fn listen(text: &str) -> Result<Listen, Wrong> {
    match text.strip_prefix("unix:") {
        Some(path) => socket_path(path).map(Listen::Unix),
        None => socket(text).map(Listen::Tcp),
    }
}

/// `address:port` to listen on.
pub(super) fn socket(text: &str) -> Result<SocketAddr, Wrong> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let reason = format!("`{}` is not an address to listen on", short(text));
    let port = text.rsplit(':').next().and_then(|p| p.parse::<u16>().ok());
    if let Some(port) = text.strip_prefix("localhost:").and_then(|p| p.parse().ok()) {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    match port {
        Some(port) if text == port.to_string() || text.starts_with([':', '*']) => {
            wrong(reason, format!("did you mean `0.0.0.0:{port}`?"))
        }
        _ if text.parse::<IpAddr>().is_ok() => wrong(reason, format!("add a port: `{text}:8080`")),
        _ if text.contains("://") => wrong(reason, "write `0.0.0.0:8080`, without a scheme"),
        _ => wrong(reason, "write an IP address and a port, such as `0.0.0.0:8080`, or `unix:/path`"),
    }
}

/// `10.0.0.0/8`; a bare address is a network of one. The second value says that bits behind the prefix were set.
pub(super) fn cidr(text: &str) -> Result<(Cidr, bool), Wrong> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return wrong(format!("`{}` is not a network", short(text)), "write it as `10.0.0.0/8`");
    };
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix.map(str::parse::<u8>) {
        None => most,
        Some(Ok(prefix)) if prefix <= most => prefix,
        Some(_) => return wrong(format!("the prefix goes from 0 to {most}"), format!("write `{address}/{most}`")),
    };
    let network = match address {
        IpAddr::V4(a) => IpAddr::V4((a.to_bits() & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)).into()),
        IpAddr::V6(a) => IpAddr::V6((a.to_bits() & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)).into()),
    };
    Ok((Cidr { address: network, prefix }, network != address))
}

/// `https://host` or `https://host:port`, and nothing behind it.
pub(super) fn origin(text: &str) -> Result<(), Wrong> {
    if text == "*" {
        return Ok(());
    }
    let help = "write it as browsers send it: `https://chat.example.org`";
    let authority = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match authority {
        Some(authority) if !authority.contains(['/', '@', '?', '#']) => host_port(authority).map(|_| ()),
        _ => wrong(format!("`{}` is not an origin", short(text)), help),
    }
}

/// `http://…` or `https://…` of a service that this gateway calls.
pub(super) fn service(text: &str) -> Result<BackendUrl, Wrong> {
    let url = backend(text)?;
    match url.scheme {
        Scheme::Http | Scheme::Https => Ok(url),
        _ => wrong(format!("`{}` is not a web address", short(text)), "use `http` or `https`"),
    }
}

/// A gateway's admin address, and behind the last `/` what it calls this machine's backend.
pub(super) fn notify(text: &str) -> Result<Notify, Wrong> {
    let gateway = service(text)?;
    let (base, name) = gateway.base_path.rsplit_once('/').unwrap_or_default();
    if name.is_empty() {
        let help = format!("write `{gateway}/NAME`, with the name that gateway has for this machine's backend");
        return wrong(format!("`{gateway}` does not say which backend is interrupted"), help);
    }
    let (base, backend) = (Arc::from(base), Arc::from(name));
    Ok(Notify { gateway: BackendUrl { base_path: base, ..gateway }, backend })
}

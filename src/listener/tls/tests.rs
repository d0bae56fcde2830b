//! Certificates made on the spot, and clients that do or do not trust them.

use std::{convert::Infallible, net::SocketAddr, path::PathBuf, rc::Rc};

use http::{Request, Response};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::LocalSet,
};
use tokio_rustls::client::TlsStream;

use super::*;
use crate::{
    body::{Body, Upload},
    listener::{Answering, Limit, Settings, Stats, bind, serve},
    runtime::{drain::DrainHandle, ticker::Ticker},
};

/// A folder that goes with its test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sluicegate-tls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Pair {
    cert: String,
    key: String,
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate that ends at the beginning of `year`.
fn issue(ca: &CertifiedIssuer<'static, KeyPair>, year: i32) -> Pair {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["gate.test".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(year, 1, 1);
    Pair { cert: params.signed_by(&key, ca).unwrap().pem(), key: key.serialize_pem() }
}

fn connector(ca: &CertifiedIssuer<'static, KeyPair>, own: Option<&Pair>, alpn: &[&[u8]]) -> tokio_rustls::TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let cert = CertificateDer::from_pem_slice(own.cert.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![cert], key).unwrap()
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config).into()
}

async fn dial(address: SocketAddr, connector: &tokio_rustls::TlsConnector) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("gate.test").unwrap();
    connector.connect(name, TcpStream::connect(address).await?).await
}

/// Answers with what is known of the peer.
async fn describe(peer: Rc<Peer>, _: Request<Upload>) -> Result<Response<Body>, Infallible> {
    let identity = peer.identity.map_or("nobody".to_owned(), |identity| identity.to_string());
    let text = format!("{} {} {identity} end", peer.tls, peer.sni.as_deref().unwrap_or("-"));
    Ok(Response::new(Body::whole(text)))
}

/// Runs `test` against a listener with `tls`.
fn serving<F: Future<Output = ()>>(tls: &Arc<Reloading>, test: impl FnOnce(SocketAddr) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let socket = bind(&crate::config::Listen::Tcp(([127, 0, 0, 1], 0).into()), 1).unwrap().remove(0);
        let address = socket.address().unwrap();
        let (_handle, drain) = DrainHandle::new();
        let ticker = Ticker::default();
        let settings = Settings {
            header_bytes: 65_536,
            max_headers: 100,
            header_timeout: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            limit: Limit::new(100),
            tls: Some(Arc::clone(tls)),
        };
        let make = |peer: Rc<Peer>| {
            hyper::service::service_fn(move |request| -> Answering { Box::pin(describe(Rc::clone(&peer), request)) })
        };
        let served = serve(socket, Rc::new(settings), ticker.clone(), drain, Stats::noop(), make);
        tokio::select! {
            () = test(address) => {}
            served = served => panic!("the listener ended: {served:?}"),
            () = ticker.run() => {}
        }
    });
}

async fn ask(stream: &mut TlsStream<TcpStream>) -> io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: gate.test\r\n\r\n").await?;
    let mut seen = Vec::new();
    while !seen.ends_with(b" end") {
        if stream.read_buf(&mut seen).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let text = String::from_utf8(seen).unwrap();
    Ok(text.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[test]
fn alpn_chooses_and_idle_connections_fold_under_tls() {
    let folder = Folder::new("alpn");
    let ca = authority();
    let pair = issue(&ca, 2040);
    let files = ServerTls { cert: folder.write("c", &pair.cert), key: folder.write("k", &pair.key), client_ca: None };
    let tls = Reloading::new(&files).unwrap();
    serving(&tls, async |address| {
        let mut client = dial(address, &connector(&ca, None, &[b"http/1.1"])).await.unwrap();
        for _ in 0..3 {
            assert_eq!(ask(&mut client).await.unwrap(), "true gate.test nobody end");
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        let client = dial(address, &connector(&ca, None, &[b"h2", b"http/1.1"])).await.unwrap();
        assert_eq!(client.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut send, connection) = h2::client::handshake(client).await.unwrap();
        let exchange = async {
            let request = Request::builder().uri("https://gate.test/").body(()).unwrap();
            let mut body = send.send_request(request, true).unwrap().0.await.unwrap().into_body();
            assert_eq!(body.data().await.unwrap().unwrap(), "true gate.test nobody end");
        };
        tokio::select! {
            () = exchange => {}
            ended = connection => panic!("{ended:?}"),
        }
    });
}

#[test]
fn a_client_ca_asks_for_a_certificate_and_tells_whose_it_is() {
    let folder = Folder::new("client");
    let (ca, other) = (authority(), authority());
    let (pair, client, stranger) = (issue(&ca, 2040), issue(&ca, 2040), issue(&other, 2040));
    let files = ServerTls {
        cert: folder.write("c", &pair.cert),
        key: folder.write("k", &pair.key),
        client_ca: Some(folder.write("ca", &ca.pem())),
    };
    let tls = Reloading::new(&files).unwrap();
    serving(&tls, async |address| {
        let mut known = dial(address, &connector(&ca, Some(&client), &[])).await.unwrap();
        let der = CertificateDer::from_pem_slice(client.cert.as_bytes()).unwrap();
        let print = fingerprint(&der).unwrap();
        assert_eq!(print.to_string().len(), 64);
        assert_eq!(ask(&mut known).await.unwrap(), format!("true gate.test {print} end"));
        for own in [None, Some(&stranger)] {
            // In TLS 1.3 the client learns of it with its first read.
            if let Ok(mut refused) = dial(address, &connector(&ca, own, &[])).await {
                assert!(ask(&mut refused).await.is_err());
            }
        }
    });
}

#[test]
fn new_files_are_taken_up_and_broken_ones_are_not() {
    let folder = Folder::new("reload");
    let ca = authority();
    let (old, new) = (issue(&ca, 2040), issue(&ca, 2041));
    let files = ServerTls { cert: folder.write("c", &old.cert), key: folder.write("k", &old.key), client_ca: None };
    let tls = Reloading::new(&files).unwrap();
    let before = tls.expires().unwrap();
    assert!(matches!(tls.check(), Checked::Unchanged));

    folder.write("c", "rubbish");
    let Checked::Failed(error) = tls.check() else { panic!("taken up") };
    assert!(error.to_string().contains("/c: no certificate"), "{error}");
    assert!(matches!(tls.check(), Checked::Unchanged), "said once");
    assert_eq!(tls.expires(), Some(before));

    // The certificate is here, its key is not yet.
    folder.write("c", &new.cert);
    assert!(matches!(tls.check(), Checked::Failed(_)));
    folder.write("k", &new.key);
    assert!(matches!(tls.check(), Checked::Reloaded));
    assert_eq!(tls.expires().unwrap().duration_since(before).unwrap().as_secs(), 366 * 86_400);

    std::fs::remove_file(&files.key).unwrap();
    assert!(matches!(tls.check(), Checked::Failed(_)));
    folder.write("k", &new.key);
    assert!(matches!(tls.check(), Checked::Reloaded));
}

#[test]
fn a_swapped_link_as_kubernetes_does_it_is_noticed_and_standing_connections_stay() {
    let folder = Folder::new("swap");
    let ca = authority();
    let (old, new) = (issue(&ca, 2040), issue(&ca, 2041));
    for (version, pair) in [("..v1", &old), ("..v2", &new)] {
        folder.write(&format!("{version}/tls.crt"), &pair.cert);
        folder.write(&format!("{version}/tls.key"), &pair.key);
    }
    let link = |from: &str, to: &str| std::os::unix::fs::symlink(from, folder.0.join(to)).unwrap();
    link("..v1", "..data");
    link("..data/tls.crt", "tls.crt");
    link("..data/tls.key", "tls.key");
    let files = ServerTls { cert: folder.0.join("tls.crt"), key: folder.0.join("tls.key"), client_ca: None };
    let tls = Reloading::new(&files).unwrap();
    let leaf = |client: &TlsStream<TcpStream>| client.get_ref().1.peer_certificates().unwrap()[0].clone();
    serving(&tls, async |address| {
        let mut standing = dial(address, &connector(&ca, None, &[])).await.unwrap();
        link("..v2", "..data_tmp");
        std::fs::rename(folder.0.join("..data_tmp"), folder.0.join("..data")).unwrap();
        assert!(matches!(tls.check(), Checked::Reloaded));
        let fresh = dial(address, &connector(&ca, None, &[])).await.unwrap();
        assert_eq!(leaf(&standing), CertificateDer::from_pem_slice(old.cert.as_bytes()).unwrap());
        assert_eq!(leaf(&fresh), CertificateDer::from_pem_slice(new.cert.as_bytes()).unwrap());
        assert!(ask(&mut standing).await.is_ok());
    });
}

#[test]
fn files_that_do_not_work_are_named() {
    let folder = Folder::new("broken");
    let ca = authority();
    let (one, two) = (issue(&ca, 2040), issue(&ca, 2040));
    let (cert, key, other) = (folder.write("c", &one.cert), folder.write("k", &one.key), folder.write("o", &two.key));
    let broken = |cert: &PathBuf, key: &PathBuf, client_ca: Option<PathBuf>| {
        let files = ServerTls { cert: cert.clone(), key: key.clone(), client_ca };
        Reloading::new(&files).unwrap_err().to_string()
    };
    assert!(broken(&folder.0.join("none"), &key, None).contains("none: "));
    assert!(broken(&cert, &cert, None).contains("no private key"));
    assert!(broken(&cert, &other, None).contains("do not go together"));
    assert!(broken(&cert, &key, Some(key.clone())).contains("/k: "));
}

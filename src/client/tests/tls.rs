//! https backends: whom to trust, which name, who we are, which protocol.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{RootCertStore, ServerConfig, crypto::ring, server::WebPkiClientVerifier};
use std::path::PathBuf;
use tokio_rustls::TlsAcceptor;

use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A CA with a server's and a client's certificate for `backend.example`, as PEM files in a folder of their own.
struct Pki {
    folder: PathBuf,
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("sluicegate-client-tls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(folder.join("ca.pem"), ca.pem()).unwrap();
        let this = Self { folder, ca };
        let (cert, key) = this.issue();
        std::fs::write(this.path("client.pem"), cert.pem()).unwrap();
        std::fs::write(this.path("client.key"), key.serialize_pem()).unwrap();
        this
    }

    fn issue(&self) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["backend.example".to_owned()]).unwrap();
        (params.signed_by(&key, &self.ca).unwrap(), key)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn acceptor(&self, alpn: &[&str], asks_for_client: bool) -> TlsAcceptor {
        let (cert, key) = self.issue();
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if asks_for_client {
            let mut roots = RootCertStore::empty();
            roots.add(self.ca.der().clone()).unwrap();
            let provider = Arc::new(ring::default_provider());
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = builder.with_single_cert(vec![cert.der().clone()], key).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    fn trusting(&self) -> ClientTls {
        ClientTls {
            ca: Some(self.path("ca.pem")),
            server_name: Some("backend.example".to_owned()),
            ..ClientTls::default()
        }
    }
}

impl Drop for Pki {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// One request to a TLS backend that answers every connection's requests.
async fn try_once(acceptor: &TlsAcceptor, tls: &ClientTls) -> Seen {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let target = Target::new(&url(Scheme::Https, "127.0.0.1", port), tls).unwrap();
    let (client, _) = client();
    let serve = async {
        // A handshake that fails is what some tests are about.
        let Ok(mut backend) = acceptor.accept(accept(&listener).await).await else { return };
        for _ in 0..2 {
            answer(&mut backend, OK).await;
        }
    };
    let twice = async {
        let first = get(&client, &target).await;
        if !first.is(b"ok") {
            return first;
        }
        get(&client, &target).await
    };
    tokio::join!(twice, serve).0
}

#[tokio::test]
async fn own_ca_and_name() {
    let pki = Pki::new("own");
    let acceptor = pki.acceptor(&["http/1.1"], false);
    assert!(try_once(&acceptor, &pki.trusting()).await.is(b"ok"));
    let no_alpn = pki.acceptor(&[], false);
    assert!(try_once(&no_alpn, &pki.trusting()).await.is(b"ok"));
    let wrong_name = ClientTls { server_name: None, ..pki.trusting() };
    assert_eq!(try_once(&acceptor, &wrong_name).await, Seen::Failed(Stage::Connect));
    let other = Pki::new("other");
    assert_eq!(try_once(&acceptor, &other.trusting()).await, Seen::Failed(Stage::Connect));
}

#[tokio::test]
async fn a_client_certificate_is_shown() {
    let pki = Pki::new("client");
    let acceptor = pki.acceptor(&["http/1.1"], true);
    let with = ClientTls {
        client_cert: Some(pki.path("client.pem")),
        client_key: Some(pki.path("client.key")),
        ..pki.trusting()
    };
    assert!(try_once(&acceptor, &with).await.is(b"ok"));
    assert!(matches!(try_once(&acceptor, &pki.trusting()).await, Seen::Failed(_)));
}

#[tokio::test]
async fn http2_where_alpn_says_so() {
    let pki = Pki::new("alpn");
    let acceptor = pki.acceptor(&["h2", "http/1.1"], false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let target = Target::new(&url(Scheme::Https, "127.0.0.1", port), &pki.trusting()).unwrap();
    let (client, _) = client();
    let serve = async {
        let stream = acceptor.accept(accept(&listener).await).await.unwrap();
        let mut backend = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut response))) = backend.accept().await {
            assert_eq!(request.uri().scheme_str(), Some("https"));
            let mut send = response.send_response(Response::new(()), false).unwrap();
            send.send_data(Bytes::from_static(b"ok"), true).unwrap();
        }
    };
    let requests = async {
        for _ in 0..2 {
            let (a, b) = tokio::join!(get(&client, &target), get(&client, &target));
            assert!(a.is(b"ok") && b.is(b"ok"));
        }
    };
    tokio::task::LocalSet::new()
        .run_until(async {
            tokio::select! {
                () = requests => {}
                () = serve => unreachable!("the connection stays open"),
            }
        })
        .await;
}

#[test]
fn wrong_files_are_told_at_once() {
    let pki = Pki::new("files");
    let backend = url(Scheme::Https, "backend.example", 443);
    let problem = |tls: ClientTls| Target::new(&backend, &tls).unwrap_err().to_string();
    let missing = ClientTls { ca: Some(pki.path("none.pem")), ..ClientTls::default() };
    assert!(problem(missing).starts_with("cannot read CA file "));
    let no_cert = ClientTls { ca: Some(pki.path("client.key")), ..ClientTls::default() };
    assert!(problem(no_cert).contains("it holds no certificate"));
    let half = ClientTls { client_cert: Some(pki.path("client.pem")), ..ClientTls::default() };
    assert!(problem(half).contains("must both be given"));
    let name = ClientTls { server_name: Some("not a name".into()), ..ClientTls::default() };
    assert!(problem(name).contains("\"not a name\" is no server name"));
    let (_, other_key) = pki.issue();
    std::fs::write(pki.path("other.key"), other_key.serialize_pem()).unwrap();
    let unfit = ClientTls {
        client_cert: Some(pki.path("client.pem")),
        client_key: Some(pki.path("other.key")),
        ..ClientTls::default()
    };
    assert!(problem(unfit).contains("cannot be used"));
}

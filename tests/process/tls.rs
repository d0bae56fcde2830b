//! TLS and both versions of HTTP on one port, with curl for a client.

use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::kit::{Folder, Gate, Process, Sim, alone, until};

const CHAT: &str = r#"{"model":"sim","messages":[{"role":"user","content":"hi"}],"max_tokens":4}"#;
const STREAM: &str = r#"{"model":"sim","messages":[{"role":"user","content":"hi"}],"max_tokens":4,"stream":true}"#;

/// A certificate of `localhost` by an authority of its own: of that one, then chain and key, all PEM.
struct Issued {
    authority: String,
    cert: String,
    key: String,
}

fn issue() -> Issued {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Another name than its certificates have: else they seem to have signed themselves.
    params.distinguished_name.push(DnType::CommonName, "authority");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    Issued { authority: authority.pem(), cert: cert.pem(), key: key.serialize_pem() }
}

impl Issued {
    /// Into `folder`, where the gateway's configuration and curl look for them.
    fn put(&self, folder: &Folder) {
        folder.write("ca.pem", &self.authority);
        folder.write("key.pem", &self.key);
        folder.write("cert.pem", &self.cert);
    }
}

/// What curl got.
#[derive(Debug)]
struct Got {
    /// Its exit code: 0 when all was well.
    code: i32,
    /// Version of HTTP and status.
    said: String,
    body: String,
}

fn curl(arguments: &[&str]) -> Got {
    let output = Command::new("curl")
        .args([
            "--silent",
            "--no-buffer",
            "--max-time",
            "60",
            "--noproxy",
            "*",
            "--write-out",
            "\n%{http_version} %{http_code}",
        ])
        .args(arguments)
        .output()
        .expect("curl is there");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, said) = text.rsplit_once('\n').unwrap_or_default();
    Got { code: output.status.code().unwrap_or(-1), said: said.to_owned(), body: body.to_owned() }
}

/// A gateway with `issued` on it.
fn with_tls(sim: &Sim, issued: &Issued) -> Gate {
    let folder = Folder::new();
    issued.put(&folder);
    let (cert, key) = (folder.path("cert.pem"), folder.path("key.pem"));
    let text = format!(
        "backends: [{{name: a, url: 'http://{}'}}]\ntls: {{cert: '{}', key: '{}'}}\n",
        sim.addr,
        cert.display(),
        key.display()
    );
    let file = folder.write("sluicegate.yaml", &Gate::whole(&text));
    let process = Process::start(&["serve", "--config", file.to_str().unwrap()], std::process::Stdio::null());
    Gate::of(process, folder).healthy()
}

fn https(gate: &Gate, more: &[&str]) -> Got {
    let ca = gate.folder.path("ca.pem");
    let (ca, url) = (ca.to_str().unwrap(), format!("https://localhost:{}/v1/chat/completions", gate.addr.port()));
    let mut arguments = vec!["--cacert", ca, "--ipv4", &url, "-H", "content-type: application/json"];
    arguments.extend(more);
    curl(&arguments)
}

#[test]
fn alpn_chooses_between_http_1_and_http_2() {
    let sim = Sim::start(&[]);
    let gate = with_tls(&sim, &issue());
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let plain = https(&gate, &[flag, "-d", CHAT]);
        assert_eq!((plain.code, &*plain.said), (0, &*format!("{version} 200")), "{plain:?}");
        let stream = https(&gate, &[flag, "-d", STREAM]);
        assert_eq!((stream.code, &*stream.said), (0, &*format!("{version} 200")), "{stream:?}");
        assert!(stream.body.contains("data: [DONE]"), "{stream:?}");
    }
    assert_eq!(gate.metric("sluicegate_tls_failures_total"), 0.0);
    let plain = curl(&["-d", CHAT, &format!("http://{}/v1/chat/completions", gate.addr)]);
    assert_ne!(plain.code, 0, "no plain text on a port with TLS");
    gate.until_metric("sluicegate_tls_failures_total", |n| n == 1.0);
}

#[test]
fn a_cut_stream_is_no_clean_end_in_http_2_either() {
    let sim = Sim::start(&["--fault", "reset,after=3"]);
    let gate = with_tls(&sim, &issue());
    // One that cannot go on elsewhere.
    let fixed = STREAM.replace("\"stream\"", r#""response_format":{"type":"json_object"},"stream""#);
    for flag in ["--http1.1", "--http2"] {
        let cut = https(&gate, &[flag, "-d", &fixed]);
        assert_ne!(cut.code, 0, "{cut:?}");
        assert!(cut.body.contains("\"error\"") && !cut.body.contains("[DONE]"), "{cut:?}");
    }
}

#[test]
fn new_certificates_are_taken_from_the_files() {
    let sim = Sim::start(&[]);
    let (first, second) = (issue(), issue());
    let gate = with_tls(&sim, &first);
    assert_eq!(https(&gate, &["-d", CHAT]).code, 0);
    // A key that does not belong to the certificate: the old pair stays.
    gate.folder.write("key.pem", &second.key);
    until("the refusal", || gate.process.said().contains("the old ones stay").then_some(()));
    assert_eq!(https(&gate, &["-d", CHAT]).code, 0);
    second.put(&gate.folder);
    until("the new certificate", || (https(&gate, &["-d", CHAT]).code == 0).then_some(()));
    gate.folder.write("ca.pem", &first.authority);
    assert_ne!(https(&gate, &["-d", CHAT]).code, 0, "of another authority");
}

#[test]
fn http_2_without_tls_is_understood_on_the_same_port() {
    let sim = Sim::start(&[]);
    let gate = Gate::start(&format!("backends: [{{name: a, url: 'http://{}'}}]\n", sim.addr)).healthy();
    let url = format!("http://{}/v1/chat/completions", gate.addr);
    for (flag, version) in [("--http2-prior-knowledge", "2"), ("--http1.1", "1.1"), ("--http1.0", "1")] {
        for body in [CHAT, STREAM] {
            let got = curl(&[flag, "-H", "content-type: application/json", "-d", body, &url]);
            assert_eq!((got.code, &*got.said), (0, &*format!("{version} 200")), "{flag}: {got:?}");
            assert_eq!(body == STREAM, got.body.contains("data: [DONE]"), "{got:?}");
        }
    }
}

#[test]
fn an_end_under_http_2_finishes_its_streams() {
    let _turn = alone();
    let sim = Sim::start(&["--fault", "stall,after=3"]);
    let mut gate =
        Gate::start(&format!("backends: [{{name: a, url: 'http://{}'}}]\ndrain: {{grace: 300s}}\n", sim.addr));
    let url = format!("http://{}/v1/chat/completions", gate.addr);
    let readers: Vec<_> = (0..10)
        .map(|_| {
            let url = url.clone();
            std::thread::spawn(move || {
                curl(&["--http2-prior-knowledge", "-H", "content-type: application/json", "-d", STREAM, &url])
            })
        })
        .collect();
    until("all are under way", || (sim.state()["running"] == 10).then_some(()));
    gate.process.signal("TERM");
    until("not ready", || (gate.admin("/readyz").status == 503).then_some(()));
    sim.post("/sim/release", "");
    for reader in readers {
        let got = reader.join().unwrap();
        assert!(got.code == 0 && got.body.contains("data: [DONE]"), "{got:?}");
    }
    assert_eq!(gate.process.ended().code(), Some(0), "{}", gate.process.said());
}

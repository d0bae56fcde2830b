//! What the pieces do alone; tests/it/config.rs has the whole.

use std::time::Duration;

use super::{
    de::{self, Step},
    env::{Env, interpolate},
    file::FileConfig,
    secret::{Secrets, is_secret_path, may_be_secret, short},
    tree,
    units::{Period, Size},
    url,
};

#[test]
fn the_full_configuration_is_the_default() {
    let (mut root, faults) = tree::parse(include_str!("../../config/sluicegate.yaml"));
    assert!(faults.is_empty(), "{faults:?}");
    let (mut written, faults): (FileConfig, _) = de::read(&mut root);
    assert!(faults.is_empty(), "{faults:?}");
    let mut backend = written.backends.remove(0);
    assert_eq!(backend.url.take().as_deref(), Some("http://127.0.0.1:8000"));
    assert_eq!(backend, super::file::Backend::default());
    assert_eq!(written, FileConfig::default());
}

#[test]
fn durations() {
    let cases = [
        ("0", 0),
        ("0s", 0),
        ("250ms", 250),
        ("10s", 10_000),
        (" 1m30s ", 90_000),
        ("1h 5m", 3_900_000),
        ("1.5s", 1500),
        ("2d", 172_800_000),
    ];
    for (text, millis) in cases {
        assert_eq!(Period::parse(text).unwrap().0, Duration::from_millis(millis), "{text}");
    }
    for (text, help) in [("10", "did you mean `10s`?"), ("1m30", "did you mean `30s`?")] {
        assert!(Period::parse(text).unwrap_err().ends_with(help), "{text}");
    }
    for text in ["", "s", "-1s", "1 s", "1x", "1e9s", "1.2.3s", "999999999999999999999s", "4000d", "1s,"] {
        assert!(Period::parse(text).is_err(), "{text}");
    }
}

#[test]
fn sizes() {
    let cases = [("0", 0), ("512", 512), ("64KiB", 65_536), ("1.5 MiB", 1_572_864), ("1GB", 1_000_000_000), ("7B", 7)];
    for (text, bytes) in cases {
        assert_eq!(Size::parse(text).unwrap().0, bytes, "{text}");
    }
    for (text, help) in [("1m", "1MiB"), ("1mb", "1MB"), ("5k", "5KiB"), ("2gib", "2GiB")] {
        assert!(Size::parse(text).unwrap_err().ends_with(&format!("did you mean `{help}`?")), "{text}");
    }
    for text in ["", "MiB", "-1", "1.2.3MiB", "1XiB", "99999999999999999999", "2000TiB", "1é"] {
        assert!(Size::parse(text).is_err(), "{text}");
    }
}

#[test]
fn units_print_what_they_read() {
    for millis in [0, 1, 999, 1000, 90_000, 3_600_000, 3_661_001, 90_061_001] {
        let period = Period(Duration::from_millis(millis));
        assert_eq!(Period::parse(&period.to_string()).unwrap(), period);
    }
    for bytes in [0, 1, 1023, 1024, 1025, 3 << 20, 5 << 30] {
        assert_eq!(Size::parse(&Size(bytes).to_string()).unwrap(), Size(bytes));
    }
}

#[test]
fn values_know_their_places() {
    let (root, faults) = tree::parse("a: 1\nb:\n  - {c: \"é ü\", d: x}\n");
    assert!(faults.is_empty());
    let tree::Value::List(items) = &root.get("b").unwrap().value else { panic!("{root:?}") };
    let place = |node: &tree::Node| match node.at {
        tree::At::File(s) => (s.line, s.column, s.end_column),
        tree::At::Named(_) => panic!("not of a file"),
    };
    assert_eq!(place(items[0].get("c").unwrap()), (3, 9, 14));
    assert_eq!(place(items[0].get("d").unwrap()), (3, 19, 20));
}

#[test]
fn merge_keys_take_over_what_is_not_given() {
    let (root, faults) = tree::parse("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [*a, {z: 4}]}\n");
    assert!(faults.is_empty());
    let text = |section: &str, field: &str| match &root.get(section).and_then(|s| s.get(field)).unwrap().value {
        tree::Value::Scalar(s) => s.text.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!((text("b", "x"), text("b", "y"), text("c", "z")), ("1".into(), "3".into(), "4".into()));
}

#[test]
fn variables() {
    let env: Env = [("A", "1"), ("E", ""), ("N", "${A}")].into_iter().collect();
    let expand = |text: &str| {
        let at = tree::At::Named("test".into());
        let mut node = tree::Node::text(text, at);
        let mut faults = Vec::new();
        interpolate(&mut node, "", &env, &mut faults);
        match node.value {
            tree::Value::Scalar(s) => Some(s.text),
            tree::Value::Null => Some(String::new()),
            _ => None,
        }
    };
    let cases = [
        ("x${A}y${A}", "x1y1"),
        ("${E}", ""),
        ("${E:-d}", "d"),
        ("${U:-}", ""),
        ("${U:-a:b}", "a:b"),
        ("${A:?no}", "1"),
        ("$${A}", "${A}"),
        ("$A $ $$", "$A $ $$"),
        // What a variable holds is not looked at again.
        ("${N}", "${A}"),
    ];
    for (text, wanted) in cases {
        assert_eq!(expand(text).as_deref(), Some(wanted), "{text}");
    }
    for text in ["${U}", "${E:?no}", "${", "${}", "${A", "${1A}", "${A-x}", "${A:x}", "${A B}"] {
        assert_eq!(expand(text), None, "{text}");
    }
}

#[test]
fn secret_places() {
    let path = |text: &str| text.split('.').map(|s| Step::Field(s.to_owned())).collect::<Vec<_>>();
    for secret in ["api_key", "backends.api_key", "auth.keys.key", "admin_tokne", "apikey", "password", "x.token.y"] {
        assert!(is_secret_path(&path(secret)), "{secret}");
    }
    for open in
        ["url", "tls.key", "admin_tls.key", "tls.client_key", "api_key_file", "normalize.max_tokens_cap", "zone"]
    {
        assert!(!is_secret_path(&path(open)), "{open}");
    }
    for field in ["default_max_tokens", "tokens_per_minute", "auth.keys.name", "cache.key_file"] {
        assert!(!is_secret_path(&path(field)), "{field}");
    }
}

#[test]
fn carets_move_with_what_is_blanked() {
    let line = "{api_key: abcdefgh, url: 'http://u:p@h', zone: 7}";
    let (root, _) = tree::parse(line);
    let (text, start, end) = Secrets::of(&root).mask(1, line, 48, 49);
    assert_eq!(text, "{api_key: ***, url: 'http://***@h', zone: 7}");
    assert_eq!(&text[start - 1..end - 1], "7");
    assert_eq!(short("see http://user:pass@host/x\n"), "see http://***@host/x ");
}

#[test]
fn lines_below_a_secrets_name_are_not_shown() {
    let text = "zone: a\nadmin_token:\n  1\n  2\n  3\n  4\n  5\n  6\nlisten: [\n  b\n";
    let lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let hidden: Vec<_> = (1..=10).filter(|n| may_be_secret(&lines, *n)).collect();
    assert_eq!(hidden, [2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn backend_urls_read_as_they_print() {
    let urls = [
        "http://a",
        "http://a:8000",
        "https://a.b-c_d",
        "https://[::1]:9000/base",
        "h2c://10.0.0.1:50051",
        "unix:/run/x.sock",
    ];
    for text in urls {
        assert_eq!(url::backend(text).unwrap().to_string(), text);
    }
    assert_eq!(url::backend("HTTP://Host:80/v/").unwrap().to_string(), "http://host/v");
}

#[test]
fn networks_are_rounded_to_their_prefix() {
    let cases =
        [("10.1.2.3/8", "10.0.0.0", 8), ("1.2.3.4", "1.2.3.4", 32), ("9.9.9.9/0", "0.0.0.0", 0), ("::1/0", "::", 0)];
    for (text, address, prefix) in cases {
        let (cidr, _) = url::cidr(text).unwrap();
        assert_eq!((cidr.address.to_string().as_str(), cidr.prefix), (address, prefix), "{text}");
    }
}

#[test]
fn addresses_of_redis() {
    let plain = url::redis("redis://cache").unwrap();
    assert_eq!((plain.tls, &*plain.host, plain.port, plain.database), (false, "cache", 6379, 0));
    assert_eq!((plain.username, plain.password), (None, None));
    let full = url::redis("rediss://gate:p%40ss%2Fw@[::1]:7000/3").unwrap();
    assert_eq!((full.tls, &*full.host, full.port, full.database), (true, "::1", 7000, 3));
    assert_eq!((full.username.as_deref(), full.password.as_ref().map(|p| p.reveal())), (Some("gate"), Some("p@ss/w")));
    let valkey = url::redis("valkey://:secret@cache/").unwrap();
    assert_eq!((valkey.username, valkey.password.unwrap().reveal()), (None, "secret"));
    for text in ["", "cache:6379", "http://cache", "redis://", "redis://:1", "redis://u@cache", "redis://cache/x"] {
        assert!(url::redis(text).is_err(), "{text}");
    }
    for text in
        ["redis://cache:99999", "redis://cache/1?a=b", "redis://cache/0/1", "redis+unix:///s", "redis://cache/-1"]
    {
        assert!(url::redis(text).is_err(), "{text}");
    }
}

use super::*;

fn map(fields: &[(&str, &str)]) -> HeaderMap {
    fields.iter().map(|(n, v)| (HeaderName::from_bytes(n.as_bytes()).unwrap(), HeaderValue::from_str(v).unwrap())).fold(
        HeaderMap::new(),
        |mut map, (n, v)| {
            map.append(n, v);
            map
        },
    )
}

/// As a backend gets them.
fn put(headers: &mut HeaderMap, added: Added) {
    assert!(added.len() <= MOST_ADDED);
    for (name, value) in added {
        headers.insert(name, value);
    }
}

fn all(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect()
}

#[test]
fn connection_named_fields_go_and_the_messages_own_stay() {
    let mut headers = map(&[
        ("connection", "close, X-Secret , content-type,authorization"),
        ("connection", "x-other"),
        ("x-secret", "1"),
        ("x-other", "2"),
        ("x-kept", "3"),
        ("content-type", "application/json"),
        ("authorization", "Bearer k"),
        ("keep-alive", "timeout=5"),
        ("te", "gzip"),
        ("transfer-encoding", "chunked"),
        ("expect", "100-continue"),
        ("x-sluicegate-interruption", "terminate;1"),
    ]);
    strip_request(&mut headers);
    let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, ["authorization", "content-type", "x-kept"]);
}

#[test]
fn te_trailers_passes_alone() {
    let mut headers = map(&[("te", "gzip, Trailers")]);
    strip_request(&mut headers);
    assert_eq!(all(&headers, "te"), ["trailers"]);
}

#[test]
fn via_is_appended_and_a_loop_is_seen() {
    let (a, b) = (Via::new("a"), Via::new("b"));
    let mut headers = map(&[("via", "1.1 proxy, 2.0 sluicegate-c (sluicegate-a)")]);
    let mut added = Added::new();
    a.stamp(&mut headers, &mut added, Version::HTTP_11).unwrap();
    b.stamp(&mut headers, &mut added, Version::HTTP_2).unwrap();
    assert!(added.is_empty(), "what replaces would lose the way so far");
    assert_eq!(
        all(&headers, "via"),
        ["1.1 proxy, 2.0 sluicegate-c (sluicegate-a)", "1.1 sluicegate-a", "2.0 sluicegate-b"]
    );
    assert_eq!(a.stamp(&mut headers, &mut added, Version::HTTP_11).unwrap_err().kind(), Kind::LoopDetected);
}

#[test]
fn forwarding_fields_are_replaced_for_strangers_and_appended_for_trusted() {
    let claimed = [
        ("x-forwarded-for", "1.2.3.4"),
        ("forwarded", "for=1.2.3.4"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "evil"),
    ];
    let address: IpAddr = "10.0.0.9".parse().unwrap();
    let host = || Some(HeaderValue::from_static("gate"));

    let mut headers = map(&claimed);
    let mut added = Added::new();
    Forwarded::new(Some(address), false, &[]).stamp(&mut headers, &mut added, host());
    put(&mut headers, added);
    assert_eq!(all(&headers, "x-forwarded-for"), ["10.0.0.9"]);
    assert_eq!(all(&headers, "forwarded"), ["for=10.0.0.9;proto=http"]);
    assert_eq!(all(&headers, "x-forwarded-proto"), ["http"]);
    assert_eq!(all(&headers, "x-forwarded-host"), ["gate"]);

    let mut headers = map(&claimed);
    let trusted = [Cidr { address: "10.0.0.0".parse().unwrap(), prefix: 8 }];
    let forwarded = Forwarded::new(Some(address), false, &trusted);
    let mut added = Added::new();
    forwarded.stamp(&mut headers, &mut added, host());
    put(&mut headers, added);
    assert_eq!(all(&headers, "x-forwarded-for"), ["1.2.3.4, 10.0.0.9"]);
    assert_eq!(all(&headers, "forwarded"), ["for=1.2.3.4, for=10.0.0.9;proto=http"]);
    assert_eq!(all(&headers, "x-forwarded-proto"), ["https"]);
    assert_eq!(all(&headers, "x-forwarded-host"), ["evil"]);
}

#[test]
fn what_a_backend_tells_of_itself_is_taken_out_and_given() {
    let told = "terminate;2026-01-07T01:03:47Z";
    let mut headers = map(&[("x-sluicegate-interruption", told), ("x", "1"), ("connection", "x"), ("server", "s")]);
    assert_eq!(strip_response(&mut headers).unwrap(), told);
    assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["server"]);
    assert_eq!(strip_response(&mut headers), None);
}

#[test]
fn a_sluicegate_on_the_way_is_seen() {
    for (via, seen) in [
        (&[][..], false),
        (&[("via", "1.1 proxy, 2.0 cache (sluicegate-a)")], false),
        (&[("via", "1.1 proxy"), ("via", "1.1 varnish, 2.0 sluicegate-0815")], true),
        (&[("via", "sluicegate-0815")], false),
    ] {
        assert_eq!(Via::shows_one(&map(via)), seen, "{via:?}");
    }
}

use proptest::prelude::*;

use super::*;

fn fields(body: &str) -> Fields<'_> {
    scan(body.as_bytes()).unwrap()
}

#[test]
fn reads_what_the_gateway_looks_at() {
    let body = r#" {"messages":[{"role":"user","content":"say \"model\": {[\\"}],"model":"org/m\u00fc","stream":true,
        "max_tokens":16,"max_completion_tokens":32,"n":2,"background":false,"previous_response_id":"resp_1",
        "conversation":{"id":"c"},"stream_options":{"x":[1],"include_usage":true},"extra":{"model":"no"}} "#;
    let f = fields(body);
    let model = f.model.clone().unwrap();
    assert_eq!(model.text, "org/mü");
    assert_eq!(&body[model.span], r#""org/m\u00fc""#);
    assert_eq!((f.stream, f.max_tokens, f.n, f.background), (Some(true), Some(16), Some(2), Some(false)));
    assert_eq!((f.token_limit(), f.include_usage, f.conversation), (Some(32), Some(true), true));
    assert_eq!(f.previous_response_id.as_deref(), Some("resp_1"));
}

#[test]
fn the_last_duplicate_wins_by_any_spelling_of_its_name() {
    let f = fields(r#"{"model":"a","stream":true,"mod\u0065l":"b","stream":null}"#);
    assert_eq!(f.model.unwrap().text, "b");
    assert_eq!(f.stream, None);
    assert_eq!(fields(r#"{"model":"a","model":7}"#).model, None);
}

#[test]
fn other_types_and_null_count_as_absent() {
    let f = fields(r#"{"model":["a"],"stream":"true","max_tokens":1.5,"n":-1,"conversation":null,"stream_options":1}"#);
    assert_eq!(f, Fields::default());
    assert_eq!(fields(r#"{"max_tokens":18446744073709551616}"#).max_tokens, None);
    assert_eq!(fields(r#"{"max_tokens":18446744073709551615}"#).max_tokens, Some(u64::MAX));
}

#[test]
fn what_asks_for_one_answer() {
    for zero in ["0", "0.0", "-0", "-0.00", "0e7", "0E+3", "0.0e-5"] {
        assert!(fields(&format!(r#"{{"temperature":{zero} }}"#)).greedy, "{zero}");
    }
    for other in ["0.1", "1", "-1", "0.01e9", "1e-400", "null", "\"0\"", "[0]", "false"] {
        assert!(!fields(&format!(r#"{{"temperature":{other}}}"#)).greedy, "{other}");
    }
    for seed in ["0", "7", "18446744073709551615"] {
        assert!(fields(&format!(r#"{{"seed":{seed}}}"#)).seeded, "{seed}");
    }
    for drawn in ["-1", "4294967295", "null", "1.5", "\"7\"", "[]"] {
        assert!(!fields(&format!(r#"{{"seed":{drawn}}}"#)).seeded, "{drawn}");
    }
}

#[test]
fn what_is_to_be_stored_is_when_in_doubt() {
    for (value, said) in
        [("true", Some(true)), ("false", Some(false)), ("null", None), ("1", Some(true)), ("\"false\"", Some(true))]
    {
        let body = format!(r#"{{"store":{value},"background":{value}}}"#);
        assert_eq!((fields(&body).store, fields(&body).background), (said, said), "{value}");
    }
}

#[test]
fn what_is_not_one_object_is_malformed_and_says_where() {
    for (body, offset) in [
        ("", 0),
        ("[]", 0),
        ("null", 0),
        ("{", 1),
        ("{}x", 2),
        ("{} {}", 3),
        (r#"{"a"}"#, 4),
        (r#"{"a":}"#, 5),
        (r#"{"a":1,}"#, 7),
        (r#"{"a":1 "b":2}"#, 7),
        (r#"{a:1}"#, 1),
        (r#"{"a":01}"#, 6),
        (r#"{"a":1.}"#, 7),
        (r#"{"a":-}"#, 6),
        (r#"{"a":1e+}"#, 8),
        (r#"{"a":+1}"#, 5),
        (r#"{"a":NaN}"#, 5),
        (r#"{"a":tru}"#, 5),
        (r#"{"a":"x}"#, 5),
        (r#"{"a":"x\"#, 5),
        (r#"{"a":[1,2}"#, 9),
        (r#"{"a":[{]}"#, 7),
        (r#"{"a":[[1}]"#, 8),
    ] {
        assert_eq!(scan(body.as_bytes()).map_err(|e| e.offset), Err(offset), "{body}");
    }
    assert_eq!(scan(b"{\"a\":\"\xff\"}").unwrap_err(), Malformed { offset: 6, what: "not UTF-8" });
    assert_eq!(scan(b"[]").unwrap_err().to_string(), "invalid JSON at byte 0: an object is expected");
}

#[test]
fn nesting_has_a_bound() {
    let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    assert!(scan(nested(MAX_DEPTH).as_bytes()).is_ok());
    assert_eq!(scan(nested(MAX_DEPTH + 1).as_bytes()).unwrap_err().what, TOO_DEEP);
    assert!(TOO_DEEP.contains(&MAX_DEPTH.to_string()) && TOO_MANY.contains(&MAX_KEYS.to_string()));
}

#[test]
fn replacing_the_model_leaves_every_other_byte() {
    let body = br#"{ "a":1.0, "model" : "x\"y" ,"b":"z"}"#;
    let span = scan(body).unwrap().model.unwrap().span;
    let mut name = Vec::new();
    write_string(&mut name, "new \"one\"\n");
    let mut edits = Edits::default();
    edits.replace(span, name, ());
    let new = edits.apply(body);
    assert_eq!(&*new, br#"{ "a":1.0, "model" : "new \"one\"\n" ,"b":"z"}"#);
    assert_eq!(scan(&new).unwrap().model.unwrap().text, "new \"one\"\n");
}

#[test]
fn escapes_are_decoded_as_the_engines_do() {
    for (raw, text) in [
        (r"plain", "plain"),
        (r#"\"\\\/\b\f\n\r\t"#, "\"\\/\u{8}\u{c}\n\r\t"),
        (r"\u00e9\ud83d\ude00!", "é😀!"),
        (r"\ud83d", "\u{fffd}"),
        (r"\ud83d\u0041", "\u{fffd}A"),
        (r"\ude00", "\u{fffd}"),
        (r"\u12", "\u{fffd}12"),
        (r"\x", "x"),
        ("\\", "\\"),
        ("\\ü", "\\ü"),
    ] {
        assert_eq!(decode(raw.as_bytes()), text, "{raw}");
    }
}

/// JSON values of every kind, with the names that matter among the keys.
fn json() -> impl Strategy<Value = serde_json::Value> {
    let text = "[\\PC\"\\\\\n]{0,12}";
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        (-1e9_f64..1e9).prop_map(Into::into),
        text.prop_map(Into::into),
    ];
    let key = prop_oneof![
        Just("model".to_owned()),
        Just("stream".to_owned()),
        Just("max_tokens".to_owned()),
        text.prop_map(|s| s),
    ];
    leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            prop::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn agrees_with_a_full_parser(value in json(), pretty in any::<bool>()) {
        let body = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.unwrap();
        match scan(&body) {
            Err(_) => prop_assert!(!value.is_object()),
            Ok(f) => {
                prop_assert_eq!(f.model.map(|m| m.text.into_owned()), value["model"].as_str().map(str::to_owned));
                prop_assert_eq!(f.stream, value["stream"].as_bool());
                prop_assert_eq!(f.max_tokens, value["max_tokens"].as_u64());
            }
        }
    }

    #[test]
    fn every_proper_beginning_is_malformed(value in json(), cut in 0.0_f64..1.0) {
        prop_assume!(value.is_object());
        let body = serde_json::to_vec(&value).unwrap();
        let at = (cut * body.len() as f64) as usize;
        prop_assert!(scan(&body[..at]).is_err());
    }

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = scan(&bytes);
    }

    /// Without escapes and exponents, where a full parser also looks at what a string or a number means.
    #[test]
    fn takes_what_a_full_parser_takes(text in "\\{[\\[\\]{}\",:a0-9. -]{0,24}|\\{\"a\":[\\[\\]{}\",:0-9. -]{0,6}\\}") {
        let full = serde_json::from_str::<serde_json::Value>(&text);
        prop_assert_eq!(scan(text.as_bytes()).is_ok(), full.is_ok_and(|value| value.is_object()), "{}", text);
    }

    #[test]
    fn strings_round_trip(text in "\\PC{0,20}|[\u{0}-\u{20}\"\\\\]{0,9}") {
        let mut out = Vec::new();
        write_string(&mut out, &text);
        prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text.clone());
        prop_assert_eq!(decode(&out[1..out.len() - 1]), text);
    }
}

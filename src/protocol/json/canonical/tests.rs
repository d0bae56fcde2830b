use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::protocol::json::write_string;

fn read(body: &[u8], omit: &Omit<'_>) -> Result<(String, Notes), Unfit> {
    let mut out = Vec::new();
    let notes = Canonicaliser::default().write(body, omit, &mut out)?;
    Ok((String::from_utf8(out).unwrap(), notes))
}

fn canonical(body: &str) -> Result<String, Unfit> {
    read(body.as_bytes(), &Omit::default()).map(|(form, _)| form)
}

fn notes(body: &str) -> Notes {
    read(body.as_bytes(), &Omit::default()).unwrap().1
}

#[test]
fn members_are_sorted_and_spellings_unified() {
    for (body, form) in [
        ("{}", "{}"),
        (" { } ", "{}"),
        (r#"{"b":1,"a":2}"#, r#"{"a":2,"b":1}"#),
        (
            r#"{"a":2,"c":{"z":[1, {"y":1,"x":"\u0041\/"}],"b":null},"b":1}"#,
            r#"{"a":2,"b":1,"c":{"b":null,"z":[1,{"x":"A/","y":1}]}}"#,
        ),
        (r#"{"\u0062":1.0e+5,"a":-0}"#, r#"{"a":-0,"b":1.0e+5}"#),
        (r#"{"a":"\ud83d\ude00 \n\u000A\b \u00e9\"\u0022\\"}"#, "{\"a\":\"😀 \\n\\n\\u0008 é\\\"\\\"\\\\\"}"),
        (r#"{"ab":1,"a":2,"a!":3,"":4}"#, r#"{"":4,"a":2,"a!":3,"ab":1}"#),
        ("{\"ü\":1,\"z\":\"\u{7f}\u{2028}\"}", "{\"z\":\"\u{7f}\u{2028}\",\"ü\":1}"),
    ] {
        assert_eq!(canonical(body).as_deref(), Ok(form), "{body}");
    }
}

#[test]
fn what_can_be_read_in_two_ways_has_no_form() {
    let long = "x".repeat(100);
    for body in
        [r#"{"a":1,"a":1}"#, r#"{"a":1,"b":2,"a":1}"#, r#"{"a":1,"\u0061":1}"#, r#"{"x":[{"b":1,"a":2,"b":1}]}"#]
    {
        assert_eq!(canonical(body), Err(Unfit::Duplicate), "{body}");
    }
    let control = format!("{{\"a\":\"{long}\u{1}{long}\"}}");
    for body in [
        r#"{"a":"\ud83d"}"#,
        r#"{"a":"\ud83dx"}"#,
        r#"{"a":"\ud83d\u0041"}"#,
        r#"{"a":"\ude00\ud83d"}"#,
        r#"{"\ud83d":1}"#,
        r#"{"a":"\x"}"#,
        r#"{"a":"\u12"}"#,
        r#"{"a":"\u+123"}"#,
        "{\"a\":\"\t\"}",
        "{\"a\tb\":1}",
        "{\"abcdefgh\u{1f}\":1}",
        &control,
        "[]",
        "null",
        "",
        "{",
        "{}{}",
        "\u{feff}{}",
        r#"{"a":01}"#,
        r#"{"a":NaN}"#,
        r#"{"a":1,}"#,
    ] {
        assert!(matches!(canonical(body), Err(Unfit::Malformed(_))), "{body:?}");
    }
    for at in [0, 7, 8, 40, 99] {
        let mut bytes = format!("{{\"a\":\"{long}\"}}").into_bytes();
        bytes[6 + at] = 0xff;
        assert!(read(&bytes, &Omit::default()).is_err(), "{at}");
        bytes[6 + at] = 0x1f;
        assert!(read(&bytes, &Omit::default()).is_err(), "{at}");
    }
    assert!(read(b"{\"a\":\"\xc3\\n\xa9\"}", &Omit::default()).is_err());
}

#[test]
fn depth_and_work_are_bounded() {
    let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
    assert!(canonical(&nested(MAX_DEPTH)).is_ok());
    assert!(canonical(&nested(MAX_DEPTH + 1)).is_err());
    let twisted =
        |depth: usize| format!("{}\"{}\"{}", "{\"b\":".repeat(depth), "x".repeat(10_000), ",\"a\":0}".repeat(depth));
    assert!(canonical(&twisted(8)).is_ok());
    assert_eq!(canonical(&twisted(100)), Err(Unfit::Costly));
}

#[test]
fn named_members_are_left_out() {
    let further = ["trace".to_owned()];
    let omit = Omit { members: &["user"], further: &further, stream: true, usage: true };
    let form = |body: &str| read(body.as_bytes(), &omit).unwrap().0;
    for (body, expected) in [
        (r#"{"user":"x","a":1,"stream":true}"#, r#"{"a":1}"#),
        (r#"{"user":"x"}"#, "{}"),
        (r#"{"user":{"z":1,"b":[2]},"trace":7,"stream":null,"stream_options":null}"#, "{}"),
        (
            r#"{"z":{"user":1,"stream":true},"a":1,"stream_options":{"include_usage":true}}"#,
            r#"{"a":1,"z":{"stream":true,"user":1}}"#,
        ),
        (r#"{"stream_options":{},"m":2}"#, r#"{"m":2}"#),
        // Anything else that they may say is in the key as a whole.
        (r#"{"stream":"true","m":2}"#, r#"{"m":2,"stream":"true"}"#),
        (r#"{"stream_options":{"include_usage":1}}"#, r#"{"stream_options":{"include_usage":1}}"#),
        (
            r#"{"stream_options":{"include_usage":true,"continuous_usage_stats":true}}"#,
            r#"{"stream_options":{"continuous_usage_stats":true,"include_usage":true}}"#,
        ),
    ] {
        assert_eq!(form(body), expected, "{body}");
    }
    for body in [r#"{"user":1,"user":2}"#, r#"{"stream":true,"a":1,"stream":true}"#, r#"{"user":{"a":1,"a":2}}"#] {
        assert_eq!(read(body.as_bytes(), &omit).unwrap_err(), Unfit::Duplicate, "{body}");
    }
}

#[test]
fn references_to_content_elsewhere_are_noted() {
    for body in [
        r#"{"messages":[{"content":[{"type":"image_url","image_url":{"url":"https://a/b.png"}}]}]}"#,
        r#"{"input":[{"content":[{"type":"input_image","image_url":"http:\/\/a"}]}]}"#,
        r#"{"a":{"url":"file:///etc/passwd"}}"#,
        r#"{"a":{"url":" HTTPS://a"}}"#,
        r#"{"a":{"video_url":"//a"}}"#,
        r#"{"a":{"image_urls":["data:image/png;base64,AA","http://a"]}}"#,
        r#"{"a":{"fileUri":"gs://a"}}"#,
        r#"{"a":{"file_id":"file-1"}}"#,
        r#"{"input":[{"image":"https://a"}]}"#,
        r#"{"image_data":["x","file:a"]}"#,
    ] {
        assert!(notes(body).remote, "{body}");
    }
    for body in [
        r#"{"messages":[{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AA"}}]}]}"#,
        r#"{"messages":[{"content":"see https://a/b.png"}]}"#,
        r#"{"a":{"url":{"type":"string"}}}"#,
        r#"{"a":{"url":"","file_id":null,"urls":[],"uri":null}}"#,
        r#"{"input":[{"image":"/9j/4AAQ"}]}"#,
        r#"{"a":{"image_url":"DATA:,x"}}"#,
    ] {
        assert!(!notes(body).remote, "{body}");
    }
}

#[test]
fn tools_of_the_backend_and_its_state_are_noted() {
    for body in [
        r#"{"tools":[{"type":"function","function":{"name":"f"}},{"type":"web_search_preview"}]}"#,
        r#"{"tools":[{"name":"bash","type":"bash_20250124"}]}"#,
        r#"{"tools":[{"google_search":{}}]}"#,
        r#"{"tools":["web_search"]}"#,
        r#"{"tools":[{"type":"mcp","name":"x","server_label":"y"}]}"#,
        r#"{"web_search_options":{}}"#,
        r#"{"mcp_servers":[{"url":"data:"}]}"#,
        r#"{"container":"c"}"#,
    ] {
        assert!(notes(body).server_tools, "{body}");
    }
    for body in [
        r#"{"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]}"#,
        r#"{"tools":[{"name":"f","input_schema":{}},{"type":"custom","name":"g"}],"mcp_servers":[]}"#,
        r#"{"tools":[],"messages":[{"x":{"type":"mcp"}}],"web_search_options":null}"#,
        r#"{"tools":null}"#,
    ] {
        assert!(!notes(body).server_tools, "{body}");
    }
    for body in [
        r#"{"input":[{"type":"item_reference","id":"i"}]}"#,
        r#"{"prompt":{"id":"pmpt_1"}}"#,
        r#"{"kv_transfer_params":{"do_remote_decode":true}}"#,
    ] {
        assert!(notes(body).stateful, "{body}");
    }
    assert!(!notes(r#"{"prompt":"x","kv_transfer_params":null,"a":{"prompt":{}}}"#).stateful);
}

#[test]
fn answers_that_depend_on_their_shape_are_noted() {
    for body in [
        r#"{"tools":[{"type":"function"}]}"#,
        r#"{"functions":[{"name":"f"}]}"#,
        r#"{"reasoning_effort":"low"}"#,
        r#"{"include_reasoning":true}"#,
        r#"{"thinking":{"type":"enabled"}}"#,
        r#"{"chat_template_kwargs":{"enable_thinking":true}}"#,
    ] {
        assert!(notes(body).bound, "{body}");
    }
    for body in [r#"{"tools":[],"reasoning":null}"#, r#"{"messages":[{"reasoning":"x"}],"n":2,"logprobs":true}"#] {
        assert!(!notes(body).bound, "{body}");
    }
}

/// JSON values whose names and texts have all that is special.
fn json() -> impl Strategy<Value = Value> {
    let text = "[\\PC\"\\\\\n/a-c]{0,6}|[a-zé ]{20,90}";
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<i32>().prop_map(|eighths| (f64::from(eighths) / 8.0).into()),
        text.prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            prop::collection::vec((text, inner), 0..6).prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn object() -> impl Strategy<Value = Value> {
    json().prop_map(|value| serde_json::json!({ "a": value }))
}

/// Writes `value` in a spelling that `dice` chooses.
fn spell(value: &Value, dice: &mut impl FnMut(u32) -> u32, out: &mut String) {
    let gap = |dice: &mut dyn FnMut(u32) -> u32, out: &mut String| {
        for _ in 0..dice(3) {
            out.push([' ', '\n', '\t', '\r'][dice(4) as usize]);
        }
    };
    gap(dice, out);
    match value {
        Value::String(text) => spell_text(text, dice, out),
        Value::Array(elements) => {
            out.push('[');
            for (index, element) in elements.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                spell(element, dice, out);
            }
            gap(dice, out);
            out.push(']');
        }
        Value::Object(members) => {
            out.push('{');
            let mut left: Vec<_> = members.iter().collect();
            while !left.is_empty() {
                let (name, member) = left.remove(dice(left.len() as u32) as usize);
                gap(dice, out);
                spell_text(name, dice, out);
                gap(dice, out);
                out.push(':');
                spell(member, dice, out);
                if !left.is_empty() {
                    out.push(',');
                }
            }
            gap(dice, out);
            out.push('}');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
    gap(dice, out);
}

fn spell_text(text: &str, dice: &mut impl FnMut(u32) -> u32, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        if dice(4) == 0 {
            for unit in character.encode_utf16(&mut [0; 2]) {
                out.push_str(&if dice(2) == 0 { format!("\\u{unit:04x}") } else { format!("\\u{unit:04X}") });
            }
        } else if character == '/' && dice(2) == 0 {
            out.push_str("\\/");
        } else {
            let mut plain = Vec::new();
            write_string(&mut plain, character.encode_utf8(&mut [0; 4]));
            out.push_str(std::str::from_utf8(&plain[1..plain.len() - 1]).unwrap());
        }
    }
    out.push('"');
}

fn dice(mut seed: u64) -> impl FnMut(u32) -> u32 {
    move |sides| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((seed >> 33) as u32).checked_rem(sides).unwrap_or(0)
    }
}

/// Equal with the order of members left aside; numbers by their text.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Array(elements) => elements.iter().map(sorted).collect(),
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().map(|(name, value)| (name.clone(), sorted(value))).collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(members.into_iter().collect())
        }
        Value::Number(number) => format!("number {number}").into(),
        other => other.clone(),
    }
}

/// Changes one thing somewhere in `value`.
fn change(value: &mut Value, dice: &mut impl FnMut(u32) -> u32) {
    match value {
        Value::Array(elements) if !elements.is_empty() && dice(3) > 0 => {
            let at = dice(elements.len() as u32) as usize;
            change(&mut elements[at], dice);
        }
        Value::Object(members) if !members.is_empty() && dice(4) > 0 => {
            let at = dice(members.len() as u32) as usize;
            change(members.values_mut().nth(at).unwrap(), dice);
        }
        Value::Object(members) => {
            let first = members.keys().next().cloned();
            match first.and_then(|name| members.shift_remove(&name).map(|value| (name, value))) {
                Some((name, value)) if dice(2) == 0 => {
                    members.insert(name + "'", value);
                }
                Some(_) => {}
                None => *value = serde_json::json!([]),
            }
        }
        Value::Array(elements) => elements.push(Value::Null),
        Value::String(text) => text.push(['x', '"', '\\', 'é'][dice(4) as usize]),
        Value::Null => *value = "null".into(),
        Value::Bool(truth) => *truth = !*truth,
        Value::Number(number) => *value = number.to_string().into(),
    }
}

proptest! {
    #[test]
    fn every_spelling_has_the_same_form(value in object(), seed in any::<u64>()) {
        let form = canonical(&value.to_string()).unwrap();
        let mut other = String::new();
        spell(&value, &mut dice(seed), &mut other);
        prop_assert_eq!(canonical(&other), Ok(form.clone()), "{}", other);
        prop_assert_eq!(canonical(&form), Ok(form.clone()));
        prop_assert_eq!(sorted(&serde_json::from_str(&form).unwrap()), sorted(&value));
    }

    #[test]
    fn every_change_changes_the_form(value in object(), seed in any::<u64>()) {
        let mut other = value.clone();
        change(&mut other["a"], &mut dice(seed));
        let (a, b) = (canonical(&value.to_string()).unwrap(), canonical(&other.to_string()).unwrap());
        prop_assert_eq!(a == b, sorted(&value) == sorted(&other), "{} {}", value, other);
    }

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = read(&bytes, &Omit::default());
    }

    #[test]
    fn a_strict_parser_takes_what_has_a_form(text in "\\{\"a\":[\\[\\]{}\",:0-9eE+. \\\\unbd-]{0,10}\\}") {
        if canonical(&text).is_ok() {
            prop_assert!(serde_json::from_str::<Value>(&text).is_ok(), "{}", text);
        }
    }
}

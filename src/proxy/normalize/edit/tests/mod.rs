mod tree;

use proptest::{collection::vec, option, prelude::*, sample::select};

use self::tree::{Node, Pairs};
use super::*;
use crate::{config::Validate, protocol::json::scan};

/// No edits.
fn off() -> config::Normalize {
    config::Normalize {
        validate: Validate::Off,
        minify: false,
        nulls: false,
        dedupe_images: false,
        max_tokens_cap: None,
        default_max_tokens: None,
        strip: Vec::new(),
        system_prompts: HashMap::new(),
        max_pixels: None,
        isolate_prefix_cache: false,
    }
}

fn prompts() -> HashMap<Arc<str>, Arc<str>> {
    HashMap::from([("terse".into(), "Be \"terse\".".into())])
}

fn edited_at(endpoint: Endpoint, config: &config::Normalize, body: &str) -> String {
    let plan = Plan::new(config);
    let edits = plan.edits(endpoint, body.as_bytes(), None).unwrap_or_else(|error| panic!("{body}: {error}"));
    assert_eq!(edits.length(body.as_bytes(), edits.blanks(body.as_bytes())), edits.apply(body.as_bytes()).len());
    String::from_utf8(edits.apply(body.as_bytes()).to_vec()).unwrap()
}

/// `body`, sent as a chat and edited by `config`.
fn edited(config: &config::Normalize, body: &str) -> String {
    edited_at(Endpoint::Chat, config, body)
}

#[test]
fn an_empty_plan_looks_at_nothing() {
    let plan = Plan::new(&off());
    assert!(plan.is_empty());
    // It would fail if it were read.
    assert!(plan.edits(Endpoint::Chat, b"{{{", None).unwrap().is_empty());
}

#[test]
fn a_limit_above_the_cap_is_lowered_by_whichever_name() {
    let config = config::Normalize { max_tokens_cap: Some(100), ..off() };
    for (body, expected) in [
        (r#"{"max_tokens" : 101 , "a":1}"#, r#"{"max_tokens" : 100 , "a":1}"#),
        (r#"{"max_tokens":100}"#, r#"{"max_tokens":100}"#),
        (r#"{"max_completion_tokens":1e9}"#, r#"{"max_completion_tokens":100}"#),
        (r#"{"max\u005ftokens":"500"}"#, r#"{"max\u005ftokens":100}"#),
        (r#"{"max_tokens":5,"max_tokens":500,"n_predict":-1}"#, r#"{"max_tokens":5,"max_tokens":100,"n_predict":100}"#),
        // None that this endpoint knows: the cap is the limit.
        (r#"{"messages":[]}"#, r#"{"max_tokens":100,"messages":[]}"#),
        (r#"{"max_output_tokens":5}"#, r#"{"max_tokens":100,"max_output_tokens":5}"#),
        (r#"{"max_tokens":null}"#, r#"{"max_tokens":100}"#),
        (r#"{"max_completion_tokens":null}"#, r#"{"max_tokens":100,"max_completion_tokens":null}"#),
        (r#"{"max_tokens":7,"max_tokens":null}"#, r#"{"max_tokens":7,"max_tokens":100}"#),
        ("{ }", r#"{"max_tokens":100 }"#),
    ] {
        assert_eq!(edited(&config, body), expected, "{body}");
    }
    assert_eq!(edited_at(Endpoint::Responses, &config, "{}"), r#"{"max_output_tokens":100}"#);
    assert_eq!(edited_at(Endpoint::Embeddings, &config, r#"{"max_tokens":500}"#), r#"{"max_tokens":500}"#);
}

#[test]
fn a_default_is_for_those_who_name_none() {
    let config = config::Normalize { default_max_tokens: Some(64), ..off() };
    for (body, expected) in [
        (r#"{"a":1}"#, r#"{"max_tokens":64,"a":1}"#),
        (r#"{"max_tokens":null,"a":1}"#, r#"{"max_tokens":64,"a":1}"#),
        (r#"{"max_completion_tokens":9999999}"#, r#"{"max_completion_tokens":9999999}"#),
        (r#"{"max_tokens":"x"}"#, r#"{"max_tokens":"x"}"#),
    ] {
        assert_eq!(edited(&config, body), expected, "{body}");
    }
    let both = config::Normalize { max_tokens_cap: Some(100), ..config };
    assert_eq!(edited(&both, "{}"), r#"{"max_tokens":64}"#);
    assert_eq!(edited(&both, r#"{"max_tokens":101}"#), r#"{"max_tokens":100}"#);
}

#[test]
fn stripped_fields_take_a_comma_with_them() {
    let strip = ["a", "b", "meta.trace", "meta.deep.x", "n.y"];
    let config = config::Normalize { strip: strip.map(str::to_owned).to_vec(), ..off() };
    for (body, expected) in [
        (r#"{"a":1}"#, "{}"),
        (r#"{ "a" : 1 , "b" : 2 }"#, "{  }"),
        (r#"{ "a" : 1 , "c" : 2 }"#, r#"{ "c" : 2 }"#),
        (r#"{"c":1, "a":[{"a":1}] , "d":2 ,"b":3}"#, r#"{"c":1 , "d":2}"#),
        (r#"{"a":1,"b":2,"c":3,"a":4,"b":5}"#, r#"{"c":3}"#),
        (r#"{"c":{"a":1},"A":1}"#, r#"{"c":{"a":1},"A":1}"#),
        (r#"{"meta":{"trace":1,"k":2,"deep":{"x":1}}}"#, r#"{"meta":{"k":2,"deep":{}}}"#),
        (r#"{"meta":[{"trace":1}],"n":5}"#, r#"{"meta":[{"trace":1}],"n":5}"#),
    ] {
        assert_eq!(edited(&config, body), expected, "{body}");
    }
}

#[test]
fn a_field_that_goes_as_a_whole_goes_in_any_order_of_the_list() {
    for strip in [["a", "a.b"], ["a.b", "a"]] {
        let config = config::Normalize { strip: strip.map(str::to_owned).to_vec(), ..off() };
        assert_eq!(edited(&config, r#"{"a":{"b":1,"c":2},"d":3}"#), r#"{"d":3}"#, "{strip:?}");
    }
}

#[test]
fn nulls_go_where_they_say_nothing() {
    let config = config::Normalize { nulls: true, ..off() };
    for (body, expected) in [
        (r#"{"stop":null,"seed":null,"x":null,"n":1}"#, r#"{"x":null,"n":1}"#),
        (r#"{"tool_choice":null,"parallel_tool_calls":null}"#, r#"{"tool_choice":null,"parallel_tool_calls":null}"#),
        // The last wins: without the null a value would.
        (r#"{"seed":1,"seed":null}"#, r#"{"seed":1,"seed":null}"#),
        (r#"{"seed":null,"seed":1}"#, r#"{"seed":1}"#),
        (r#"{"metadata":{"seed":null}}"#, r#"{"metadata":{"seed":null}}"#),
    ] {
        assert_eq!(edited(&config, body), expected, "{body}");
    }
    let body = r#"{"max_tokens":null,"dimensions":null}"#;
    assert_eq!(edited_at(Endpoint::Completions, &config, body), body);
    assert_eq!(edited_at(Endpoint::Embeddings, &config, body), r#"{"max_tokens":null}"#);
}

#[test]
fn a_prompt_takes_its_place() {
    let config = config::Normalize { system_prompts: prompts(), ..off() };
    let name = r#""system_prompt":"terse""#;
    for (body, expected) in [
        (
            format!(r#"{{{name},"messages":[{{"role":"user","content":"x"}}]}}"#),
            r#"{"messages":[{"role":"system","content":"Be \"terse\"."},{"role":"user","content":"x"}]}"#,
        ),
        (
            format!(r#"{{"messages":[ {{"role":"developer","content" : "A\u0042"}}] , {name}}}"#),
            r#"{"messages":[ {"role":"developer","content" : "Be \"terse\".\n\nA\u0042"}]}"#,
        ),
        (
            format!(r#"{{"messages":[{{"content":[{{"type":"text","text":"A"}}],"role":"system"}}],{name}}}"#),
            r#"{"messages":[{"content":[{"type":"text","text":"Be \"terse\"."},{"type":"text","text":"A"}],"role":"system"}]}"#,
        ),
        (
            format!(r#"{{"messages":[{{"role":"system","content":""}}],{name}}}"#),
            r#"{"messages":[{"role":"system","content":"Be \"terse\"."}]}"#,
        ),
        (format!(r#"{{"messages":[],{name}}}"#), r#"{"messages":[{"role":"system","content":"Be \"terse\"."}]}"#),
        (r#"{"system_prompt":null,"messages":[]}"#.to_owned(), r#"{"messages":[]}"#),
    ] {
        assert_eq!(edited(&config, &body), expected, "{body}");
    }
    for (endpoint, body, expected) in [
        (Endpoint::Messages, r#"{"a":1,NAME}"#, r#"{"system":"Be \"terse\".","a":1}"#),
        (Endpoint::Messages, r#"{"system":"A",NAME}"#, r#"{"system":"Be \"terse\".\n\nA"}"#),
        (Endpoint::CountTokens, r#"{"system":[ ],NAME}"#, r#"{"system":[{"type":"text","text":"Be \"terse\"."} ]}"#),
        (Endpoint::Responses, r#"{NAME}"#, r#"{"instructions":"Be \"terse\"."}"#),
        (Endpoint::Responses, r#"{NAME,"instructions":null}"#, r#"{"instructions":"Be \"terse\"."}"#),
    ] {
        assert_eq!(edited_at(endpoint, &config, &body.replace("NAME", name)), expected, "{body}");
    }
    // Without prompts the field is somebody else's.
    assert_eq!(edited(&config::Normalize { nulls: true, ..off() }, &format!("{{{name}}}")), format!("{{{name}}}"));
}

#[test]
fn a_prompt_that_cannot_be_put_in_is_refused() {
    let plan = Plan::new(&config::Normalize { system_prompts: prompts(), ..off() });
    for (endpoint, body, what) in [
        (Endpoint::Chat, r#"{"system_prompt":"none","messages":[]}"#, "there is no system prompt \"none\""),
        (Endpoint::Chat, r#"{"system_prompt":1,"messages":[]}"#, "a string"),
        (Endpoint::Chat, r#"{"system_prompt":"terse"}"#, "`messages` is not what it should be"),
        (Endpoint::Chat, r#"{"system_prompt":"terse","messages":{}}"#, "`messages`"),
        (Endpoint::Messages, r#"{"system_prompt":"terse","system":1}"#, "`system`"),
        (Endpoint::Responses, r#"{"system_prompt":"terse","instructions":[]}"#, "`instructions`"),
        (Endpoint::Completions, r#"{"system_prompt":"terse"}"#, "no place here"),
    ] {
        let error = plan.edits(endpoint, body.as_bytes(), None).unwrap_err();
        assert!(error.message().contains(what), "{body}: {error}");
        assert_eq!((error.kind(), error.request_param()), (Kind::InvalidBody, Some("system_prompt")));
    }
}

#[test]
fn edits_meet_in_one_body() {
    let config = config::Normalize {
        minify: true,
        nulls: true,
        max_tokens_cap: Some(10),
        strip: vec!["user".to_owned()],
        system_prompts: prompts(),
        ..off()
    };
    let body = r#"{ "user" : "u", "stop" : null,
        "model" : "alias", "system_prompt" : "terse", "messages" : [ { "role" : "user", "content" : " a  b " } ],
        "n_predict" : 11 }"#;
    let at = scan(body.as_bytes()).unwrap().model.unwrap().span;
    let alias = Alias { at: &at, model: "m \"1\"" };
    let edits = Plan::new(&config).edits(Endpoint::Chat, body.as_bytes(), Some(alias)).unwrap();
    assert_eq!(
        edits.apply(body.as_bytes()),
        r#"{"max_tokens":10,"model":"m \"1\"","messages":[{"role":"system","content":"Be \"terse\"."},{"role":"user","content":" a  b "}],"n_predict":10}"#
    );
    let told: Vec<_> = changes(body.as_bytes(), &edits).into_iter().map(|c| (c.edit.name(), c.path)).collect();
    let paths = [
        ("max_tokens_cap", "max_tokens"),
        ("strip", "user"),
        ("nulls", "stop"),
        ("alias", "model"),
        ("system_prompts", "system_prompt"),
        ("system_prompts", "messages[0]"),
        ("max_tokens_cap", "n_predict"),
        ("minify", ""),
    ];
    assert_eq!(told, paths.map(|(edit, path)| (edit, path.to_owned())));
}

#[test]
fn edits_are_bounded() {
    let config = config::Normalize { strip: vec!["a".to_owned(), "b.c".to_owned()], ..off() };
    let plan = Plan::new(&config);
    for body in [
        format!("{{{}\"z\":1}}", "\"a\":1,\"y\":1,".repeat(MOST + 1)),
        format!("{{\"b\":{{{}\"z\":1}}}}", "\"c\":1,\"y\":1,".repeat(MOST + 1)),
    ] {
        let error = plan.edits(Endpoint::Chat, body.as_bytes(), None).unwrap_err();
        assert!(error.message().contains("1024 edits"), "{error}");
    }
}

/// Names that edits are about, and some that they are not.
const NAMES: [&str; 18] = [
    "max_tokens",
    "max\\u005ftokens",
    "max_completion_tokens",
    "max_output_tokens",
    "n_predict",
    "messages",
    "system",
    "instructions",
    "system_prompt",
    "model",
    "seed",
    "stop",
    "tools",
    "metadata",
    "stream_options",
    "user",
    "x",
    "\\\"\\\\",
];

fn scalar() -> impl Strategy<Value = String> {
    select(vec![
        "null",
        "true",
        "0",
        "-0.0e-1",
        "12",
        "64",
        "1e3",
        "123456789012345678901234567890",
        "-1",
        r#""""#,
        r#""17""#,
        r#""a \" } , \\""#,
        r#""terse""#,
        r#""none""#,
        r#""\ud83d""#,
        r#""alias""#,
        r#""system""#,
    ])
    .prop_map(str::to_owned)
}

fn blank() -> impl Strategy<Value = &'static str> {
    select(vec!["", "", "", " ", "\n\t", " \r\n"])
}

/// Something that could be a system message, and often is none.
fn message() -> impl Strategy<Value = String> {
    (select(vec!["system", "developer", "user"]), scalar(), blank())
        .prop_map(|(role, content, s)| format!(r#"{{{s}"role"{s}:"{role}",{s}"content":{content}{s}}}"#))
}

fn object(value: impl Strategy<Value = String>, most: usize) -> impl Strategy<Value = String> {
    let member = (select(NAMES.to_vec()), value, blank(), blank())
        .prop_map(|(name, value, a, b)| format!("{a}\"{name}\"{b}:{a}{value}{b}"));
    (vec(member, 0..most), blank()).prop_map(|(members, s)| format!("{s}{{{}{s}}}{s}", members.join(",")))
}

fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![3 => scalar(), 1 => message()];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            (vec(inner.clone(), 0..4), blank())
                .prop_map(|(all, s)| format!("[{s}{}{s}]", all.join(&format!("{s},{s}")))),
            object(inner, 4),
        ]
    })
}

fn configs() -> impl Strategy<Value = config::Normalize> {
    let strips =
        vec!["user", "x", "metadata", "metadata.x", "metadata.user.x", "max_tokens.x", "stream_options.seed", "model"];
    (
        any::<(bool, bool, bool)>(),
        option::of(select(vec![16, 100])),
        option::of(select(vec![8, 16])),
        vec(select(strips), 0..4),
    )
        .prop_map(|((minify, nulls, prompted), cap, default, strip)| config::Normalize {
            minify,
            nulls,
            max_tokens_cap: cap,
            default_max_tokens: default,
            strip: strip.into_iter().map(str::to_owned).collect(),
            system_prompts: if prompted { prompts() } else { HashMap::new() },
            ..off()
        })
}

/// Whether there is white space outside strings.
fn has_blanks(json: &str) -> bool {
    let (mut inside, mut escaped) = (false, false);
    json.bytes().any(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => inside = !inside,
            _ => return !inside && byte.is_ascii_whitespace(),
        }
        false
    })
}

fn endpoints() -> impl Strategy<Value = Endpoint> {
    select(vec![
        Endpoint::Chat,
        Endpoint::Completions,
        Endpoint::Responses,
        Endpoint::Messages,
        Endpoint::CountTokens,
        Endpoint::Embeddings,
        Endpoint::Rerank,
        Endpoint::Passthrough,
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_same_as_on_the_tree(body in object(value(), 8), config in configs(), endpoint in endpoints()) {
        let fields = scan(body.as_bytes()).unwrap();
        let plan = Plan::new(&config);
        let alias = fields.model.as_ref().filter(|model| model.text == "alias").map(|model| Alias { at: &model.span, model: "m" });
        let expected = tree::edited(&Node::parse(&body).unwrap(), &config, endpoint);
        let edits = match (plan.edits(endpoint, body.as_bytes(), alias), expected) {
            (Ok(edits), Ok(expected)) => {
                let out = String::from_utf8(edits.apply(body.as_bytes()).to_vec()).unwrap();
                prop_assert_eq!(Node::parse(&out).unwrap(), expected, "{} became {}", body, out);
                edits
            }
            (Err(_), Err(())) => return Ok(()),
            (edits, expected) => return Err(TestCaseError::fail(format!("{body}: {edits:?}, on the tree {expected:?}"))),
        };
        let blanks = edits.blanks(body.as_bytes());
        let out = edits.apply(body.as_bytes());
        prop_assert_eq!(out.len(), edits.length(body.as_bytes(), blanks));
        prop_assert!(scan(&out).is_ok());
        let out = String::from_utf8(out.to_vec()).unwrap();
        if config.minify && endpoint != Endpoint::Passthrough {
            prop_assert!(!has_blanks(&out), "{}", out);
        } else {
            // What is not edited is the same to the byte.
            let untouched = |name: &str| matches!(name, "seed" | "stop" | "tools" | "\"\\");
            let (before, after) = (Pairs::parse(&body).unwrap(), Pairs::parse(&out).unwrap());
            let left: Vec<_> = before.0.iter().filter(|(name, value)| untouched(name) && value.get() != "null").collect();
            let there: Vec<_> = after.0.iter().filter(|(name, value)| untouched(name) && value.get() != "null").collect();
            prop_assert_eq!(format!("{left:?}"), format!("{there:?}"));
        }
        // Once is enough.
        let again = plan.edits(endpoint, out.as_bytes(), None).unwrap();
        prop_assert_eq!(again.apply(out.as_bytes()), out);
    }
}

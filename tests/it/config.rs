//! Every file under config/ loads, every mistake gives its line, the documentation is what the code says.
//!
//! Committed output is rewritten by `UPDATE=1 cargo test --test it config`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use serde_json::Value;
use sluicegate::{
    cli::schema,
    config::{self, AdminAt, Env, Flags, Format, InterruptionSource, Listen, Loaded, Problem, ResumeMode, Severity},
};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Compares with a committed file, or rewrites it.
#[track_caller]
fn committed(path: &Path, text: &str) {
    if std::env::var_os("UPDATE").is_some() {
        fs::write(path, text).unwrap();
        return;
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    assert!(found == text, "{} is out of date: UPDATE=1 cargo test --test it config\n{text}", path.display());
}

fn load(text: &str) -> Result<Loaded, Vec<Problem>> {
    load_with(text, &[], &Flags::default())
}

fn load_with(text: &str, env: &[(&str, &str)], flags: &Flags) -> Result<Loaded, Vec<Problem>> {
    let env: Env = env.iter().copied().collect();
    config::from_text(text, Some(Path::new("test.yaml")), &env, flags)
}

/// All that is said of a text, good or bad.
fn said(text: &str) -> Vec<Problem> {
    load(text).map_or_else(|problems| problems, |loaded| loaded.problems())
}

/// A folder of this test's own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sluicegate-config-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_schema_is_current() {
    committed(&repository().join("config/schema.json"), &schema::text());
}

#[test]
fn every_committed_configuration_loads() {
    let folder = Folder::new("examples");
    let env = [("ADMIN_TOKEN", "t")].into_iter().collect();
    let mut seen = 0;
    for directory in ["config", "config/examples"] {
        for entry in fs::read_dir(repository().join(directory)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|e| e != "yaml") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("# yaml-language-server: $schema="), "{} names no schema", path.display());
            // The files that an example names are the reader's to make.
            for word in text.split_whitespace().filter(|w| w.ends_with(".pem") || w.ends_with(".key")) {
                folder.file(word, "secret\n");
            }
            let copy = folder.file(path.file_name().unwrap().to_str().unwrap(), &text);
            let loaded = config::load(Some(&copy), &env, &Flags::default());
            let mut problems = loaded.as_ref().map_or_else(|p| p.clone(), Loaded::problems);
            // A fleet over several zones is meant so; that it costs is still said.
            problems.retain(|problem| !problem.reason.contains("are charged for"));
            assert_eq!(config::render(&problems, Format::Human), "", "{}", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 4, "only {seen} configurations found");
}

#[test]
fn the_full_configuration_names_every_option() {
    let text = fs::read_to_string(repository().join("config/sluicegate.yaml")).unwrap();
    for row in rows() {
        let name = row.path.rsplit(['.', ']']).next().unwrap().to_owned();
        assert!(text.contains(&format!("{name}:")), "config/sluicegate.yaml does not name {}", row.path);
    }
}

// ── The table of docs/configuration.md ─────────────────────────────────────────────────────────────────────────────

struct Row {
    path: String,
    default: String,
    values: String,
    about: String,
}

/// All fields, in the order of the file.
fn rows() -> Vec<Row> {
    let schema: Value = serde_json::from_str(&schema::text()).unwrap();
    let mut rows = Vec::new();
    walk(&schema, &schema, "", None, &mut rows);
    rows
}

fn walk(root: &Value, section: &Value, path: &str, defaults: Option<&Value>, rows: &mut Vec<Row>) {
    for (name, field) in section["properties"].as_object().unwrap() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let target = target(root, field);
        let items = target.get("items").map(|items| self::target(root, items));
        let default = defaults.map_or(field.get("default"), |d| d.get(name)).or(field.get("default"));
        let about = field["description"].as_str().unwrap_or_else(|| panic!("{path} is not described")).to_owned();
        if let Some(inner) = items.filter(|items| items.get("properties").is_some()) {
            walk(root, inner, &format!("{path}[]"), None, rows);
        } else if target.get("properties").is_some() {
            walk(root, target, &path, default, rows);
        } else {
            let default = default.filter(|d| !d.is_null()).map_or("unset".to_owned(), show);
            rows.push(Row { path, default, values: values(root, target), about });
        }
    }
}

/// Follows references, past the `null` of what may be unset and the text that holds a variable.
fn target<'v>(root: &'v Value, field: &'v Value) -> &'v Value {
    if let Some(name) = field["$ref"].as_str() {
        return root.pointer(name.trim_start_matches('#')).unwrap();
    }
    let forms = field["anyOf"].as_array().into_iter().flatten();
    let mut forms = forms.filter(|form| form["type"] != "null" && form["pattern"] != r"\$\{");
    match (forms.next(), forms.next()) {
        (Some(only), None) => target(root, only),
        _ => field,
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::String(text) => format!("`{text}`"),
        Value::Array(items) if items.is_empty() => "`[]`".to_owned(),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(|i| i.as_str().map_or(i.to_string(), str::to_owned)).collect();
            format!("`[{}]`", items.join(", "))
        }
        Value::Object(fields) if fields.is_empty() => "`{}`".to_owned(),
        other => format!("`{other}`"),
    }
}

fn values(root: &Value, target: &Value) -> String {
    if let Some(words) = target["enum"].as_array() {
        return words.iter().map(show).collect::<Vec<_>>().join(" ");
    }
    if let Some(word) = target.get("const") {
        return show(word);
    }
    if let Some(any) = target["anyOf"].as_array() {
        let forms = any.iter().filter(|form| form["pattern"] != r"\$\{" && form["type"] != "null");
        return forms.map(|form| values(root, form)).collect::<Vec<_>>().join(", ");
    }
    let pattern = target["pattern"].as_str().unwrap_or_default();
    let kind = match &target["type"] {
        Value::Array(kinds) => kinds[0].as_str().unwrap(),
        kind => kind.as_str().unwrap_or("text"),
    };
    match kind {
        _ if pattern.contains("ms|s|m|h|d") => "duration".to_owned(),
        _ if pattern.contains("KiB") => "size".to_owned(),
        "string" => "text".to_owned(),
        "integer" => "whole number".to_owned(),
        "boolean" => "true or false".to_owned(),
        "array" => {
            let items = values(root, self::target(root, &target["items"]));
            format!("list of {}", if items == "text" { "texts".to_owned() } else { items })
        }
        "object" => "texts by name".to_owned(),
        other => other.to_owned(),
    }
}

#[test]
fn the_documentation_lists_every_field() {
    const BEGIN: &str = "<!-- fields: generated by tests/it/config.rs -->\n";
    const END: &str = "<!-- end of fields -->";
    let path = repository().join("docs/configuration.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let mut table = "| field | values | default | what it does |\n|---|---|---|---|\n".to_owned();
    for row in rows() {
        let about = row.about.replace('\n', " ").replace('|', "\\|");
        table.push_str(&format!("| `{}` | {} | {} | {about} |\n", row.path, row.values, row.default));
    }
    committed(&path, &format!("{before}{BEGIN}{table}{END}{after}"));
}

#[test]
fn every_default_has_its_reason() {
    let text = fs::read_to_string(repository().join("docs/defaults.md")).unwrap();
    let schema: Vec<String> = rows().into_iter().map(|row| row.path).collect();
    for word in text.split('`').skip(1).step_by(2).filter(|w| w.contains('.') && !w.contains([' ', '/', ':', '*'])) {
        let known = schema.iter().any(|path| path == word) || word.parse::<f64>().is_ok();
        assert!(known, "docs/defaults.md speaks of `{word}`, which is no field");
    }
}

// ── Mistakes ───────────────────────────────────────────────────────────────────────────────────────────────────────

/// Each `tests/fixtures/config/*.yaml` is said to be what the `.txt` beside it says.
#[test]
fn every_mistake_gives_its_line() {
    let folder = repository().join("tests/fixtures/config");
    let mut seen = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let name = PathBuf::from(path.file_name().unwrap());
        let env = [("EMPTY", ""), ("NAME", "\"]\nlisten: x")].into_iter().collect();
        let problems = match config::from_text(&text, Some(&name), &env, &Flags::default()) {
            Ok(loaded) => loaded.problems(),
            Err(problems) => problems,
        };
        committed(&path.with_extension("txt"), &config::render(&problems, Format::Human));
        seen += 1;
    }
    assert!(seen >= 8, "only {seen} fixtures found");
}

#[test]
fn github_annotations_carry_place_and_help() {
    let problems = said("backends: [{url: 'http://a:1'}]\nlimits: {queeu: 1}\n");
    assert_eq!(
        config::render(&problems, Format::Github),
        "::error file=test.yaml,line=2,col=10::unknown field `queeu` (did you mean `queue`?)\n"
    );
}

#[test]
fn a_configuration_is_bounded() {
    let deep = format!("zone: {}", "[".repeat(5000));
    assert!(said(&deep).iter().any(Problem::is_error));
    let mut bomb = "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..12 {
        bomb.push_str(&format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", ")));
    }
    assert!(said(&bomb).iter().any(|p| p.reason.contains("aliases")), "{:?}", said(&bomb));
    let unknown: String = (0..5000).map(|i| format!("field_{i}: 1\n")).collect();
    assert!(!said(&unknown).is_empty());

    let folder = Folder::new("size");
    let path = folder.file("large.yaml", &"#".repeat((4 << 20) + 1));
    let problems = config::load(Some(&path), &Env::default(), &Flags::default()).unwrap_err();
    assert!(problems[0].reason.contains("4 MiB"), "{problems:?}");
    fs::write(&path, b"zone: \xff\n").unwrap();
    let problems = config::load(Some(&path), &Env::default(), &Flags::default()).unwrap_err();
    assert!(problems[0].reason.contains("UTF-8 (line 1)"), "{problems:?}");
}

// ── Precedence ─────────────────────────────────────────────────────────────────────────────────────────────────────

const ONE: &str = "backends: [{url: 'http://127.0.0.1:8000'}]\n";

fn listen(loaded: &Loaded) -> String {
    match &loaded.config.listen {
        Listen::Tcp(address) => address.to_string(),
        Listen::Unix(path) => path.display().to_string(),
    }
}

#[test]
fn flags_go_before_environment_before_file_before_defaults() {
    let file = format!("{ONE}listen: 127.0.0.1:1\n");
    let env = [("SLUICEGATE_LISTEN", "127.0.0.1:2"), ("PORT", "4")];
    let flags = Flags { listen: Some("127.0.0.1:3".into()), ..Flags::default() };
    let none = Flags::default();
    assert_eq!(listen(&load_with(&file, &env, &flags).unwrap()), "127.0.0.1:3");
    assert_eq!(listen(&load_with(&file, &env, &none).unwrap()), "127.0.0.1:2");
    assert_eq!(listen(&load_with(&file, &env[1..], &none).unwrap()), "127.0.0.1:1");
    assert_eq!(listen(&load_with(ONE, &env[1..], &none).unwrap()), "0.0.0.0:4");
    assert_eq!(listen(&load(ONE).unwrap()), "0.0.0.0:8080");
}

#[test]
fn the_environment_reaches_nested_fields_and_lists() {
    let env = [
        ("SLUICEGATE_TIMEOUTS__CONNECT", "250ms"),
        ("SLUICEGATE_TRUSTED_PROXIES", "[10.0.0.0/8, '::1']"),
        ("SLUICEGATE_BACKENDS__0__MAX_CONCURRENCY", "7"),
        ("SLUICEGATE_BACKENDS__1__URL", "unix:/run/llm.sock"),
        // What Kubernetes sets for a service named sluicegate.
        ("SLUICEGATE_PORT", "tcp://10.0.0.1:8080"),
        ("SLUICEGATE_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("SLUICEGATE_SERVICE_HOST", "10.0.0.1"),
    ];
    let loaded = load_with(ONE, &env, &Flags::default()).unwrap();
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.config.timeouts.connect.as_millis(), 250);
    assert_eq!(loaded.config.trusted_proxies.len(), 2);
    assert_eq!(loaded.config.backends[0].max_concurrency, config::Concurrency::Limit(7));
    assert_eq!(loaded.config.backends[1].url.to_string(), "unix:/run/llm.sock");
    assert_eq!(&*loaded.config.backends[1].name, "llm.sock");
}

#[test]
fn the_environment_alone_is_enough() {
    let env = [("SLUICEGATE_BACKENDS__0__URL", "http://a:1"), ("SLUICEGATE_LOG__LEVEL", "debug")];
    let loaded = config::load(None, &env.into_iter().collect(), &Flags::default()).unwrap();
    assert_eq!(&*loaded.config.backends[0].name, "a:1");
    assert_eq!(loaded.config.log.level, config::Level::Debug);
    assert_eq!(loaded.file, None);
}

#[test]
fn a_wrong_variable_is_named() {
    let env = [("SLUICEGATE_LISTNE", "x"), ("SLUICEGATE_CACHE__TTLL", "1h"), ("SLUICEGATE_RETRY", "{attempts: 1")];
    let problems = load_with(ONE, &env, &Flags::default()).unwrap_err();
    let of = |name: &str| problems.iter().find(|p| p.file.ends_with(name)).unwrap_or_else(|| panic!("{problems:?}"));
    assert_eq!(of("SLUICEGATE_LISTNE").severity, Severity::Warning);
    assert_eq!(of("SLUICEGATE_CACHE__TTLL").help.as_deref(), Some("did you mean `ttl`?"));
    assert!(of("SLUICEGATE_RETRY").reason.contains("not a YAML value"));
}

#[test]
fn variables_stand_for_text_and_never_for_yaml() {
    let env = [("HOST", "10.0.0.9"), ("EVIL", "x\nadmin: 0.0.0.0:1"), ("EMPTY", "")];
    let text = "zone: ${EVIL}\nbackends: [{url: 'http://${HOST}:${PORT_OF:-8000}', api_key: '${EMPTY:-}'}]\n";
    let problems = load_with(text, &env, &Flags::default()).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!((problems[0].line, problems[0].path.as_str()), (1, "zone"));
    let loaded = load_with(&text.replace("${EVIL}", "a$b"), &env, &Flags::default()).unwrap();
    assert_eq!(loaded.config.backends[0].url.to_string(), "http://10.0.0.9:8000");
    assert_eq!(loaded.config.backends[0].api_key, None);
    let escaped = load("backends: [{url: 'http://a:1', models: ['$${HOST}']}]\n").unwrap();
    assert_eq!(escaped.config.backends[0].models, config::Models::List(vec!["${HOST}".into()]));
}

#[test]
fn off_may_have_become_false_on_its_way() {
    let loaded =
        load(&format!("{ONE}admin: false\nresume: {{mode: false}}\ninterruption: {{source: false}}\n")).unwrap();
    assert_eq!(loaded.config.admin.at, AdminAt::Off);
    assert_eq!(loaded.config.resume.mode, ResumeMode::Off);
    assert_eq!(loaded.config.interruption.source, InterruptionSource::Off);
}

#[test]
fn backends_from_flags_need_no_file() {
    let urls = ["http://127.0.0.1:8000".to_owned(), "https://[::1]:9000/base/".to_owned()];
    let config = config::Config::from_backends(&urls, Some("127.0.0.1:0")).unwrap();
    assert_eq!(&*config.backends[1].name, "[::1]:9000");
    assert_eq!(&*config.backends[1].url.base_path, "/base");
    assert!(config.workers >= 1);
    assert!(matches!(config.admin.at, AdminAt::Tcp(a) if a.ip().is_loopback()));
    let problems = config::Config::from_backends(&["127.0.0.1:8000".to_owned()], None).unwrap_err();
    assert_eq!(
        problems[0].to_string(),
        "--backend: `127.0.0.1:8000` has no scheme\n  = did you mean `http://127.0.0.1:8000`?"
    );
}

#[test]
fn the_usual_places_are_searched_in_order() {
    let folder = Folder::new("search");
    folder.file("sluicegate/sluicegate.yaml", &format!("{ONE}zone: home\n"));
    let named = folder.file("named.yaml", &format!("{ONE}zone: named\n"));
    let env: Env = [("XDG_CONFIG_HOME", folder.0.to_str().unwrap())].into_iter().collect();
    let zone = |loaded: Loaded| loaded.config.zone.unwrap().to_string();
    assert_eq!(zone(config::load(None, &env, &Flags::default()).unwrap()), "home");
    let pairs = [("XDG_CONFIG_HOME", folder.0.to_str().unwrap()), ("SLUICEGATE_CONFIG", named.to_str().unwrap())];
    let loaded = config::load(None, &pairs.into_iter().collect(), &Flags::default()).unwrap();
    assert_eq!(loaded.watch, std::slice::from_ref(&named));
    assert_eq!(zone(loaded), "named");
    let none = config::load(None, &Env::default(), &Flags::default()).unwrap_err();
    assert!(none[0].reason.contains("/etc/sluicegate/sluicegate.yaml"), "{none:?}");
}

// ── Cache ──────────────────────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn a_redis_that_cannot_be_used_is_told_with_its_line() {
    let reasons = |cache: &str| {
        let problems = load(&format!("{ONE}cache:\n  {cache}\n")).unwrap_err();
        problems.iter().map(|p| (p.line, p.path.clone(), p.reason.clone())).collect::<Vec<_>>()
    };
    let told = reasons("redis: redis://cache:6379");
    assert_eq!(told, [(3, "cache.redis".to_owned(), "`redis` needs `key_file`".to_owned())]);
    let told = reasons("redis: http://cache");
    assert!(told.iter().any(|(line, _, reason)| *line == 3 && reason == "not the URL of a Redis"), "{told:?}");
}

#[test]
fn a_placeholder_that_makes_all_users_one_tenant_is_told() {
    let warned = |more: &str| {
        let text = format!("backends:\n  - url: http://a:1\n    api_key: ${{KEY}}\n{more}");
        let problems = load_with(&text, &[("KEY", "EMPTY")], &Flags::default()).unwrap().problems();
        problems.iter().any(|p| p.path == "backends[0].api_key" && p.line == 3 && p.reason.contains("one tenant"))
    };
    assert!(warned(""));
    for meant in ["cache: {mode: off}\n", "cache: {capacity: 0}\n", "cache: {scope: shared}\n"] {
        assert!(!warned(meant), "{meant}");
    }
    let own =
        load_with("backends: [{url: 'http://a:1', api_key: '${KEY}'}]\n", &[("KEY", "sk-1b9d6bcd")], &Flags::default());
    assert!(own.unwrap().problems().is_empty());
}

// ── Secrets ────────────────────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn secrets_are_never_shown() {
    const HIDDEN: &str = "HIDDEN";
    let texts = [
        // Valid, with warnings.
        "admin_token: HIDDEN-1\nbackends:\n  - {url: 'http://a:1', api_key: \"HIDDEN-2\", interruption_token: 'HIDDEN-3'}\n",
        // Mistakes on the same line, of the secret, and beside it.
        "backends: [{ulr: x, api_key: HIDDEN}, {url: 'http://u:HIDDEN@h', api_key: [HIDDEN]}]\n",
        "admin_token: {a: HIDDEN}\nadmin_tokne: HIDDEN\nbackends: [{url: 'https://HIDDEN@h/HIDDE'}]\n",
        "auth: {keys: [{name: a, key: HIDDEN}, {name: a, key: HIDDEN, bogus: 1}]}\n",
        "cache: {redis: 'http://:HIDDEN@h'}\nbackends: 5\n",
        "cache: {redis: 'redis://HIDDEN@h'}\nbackends: 5\n",
        "cache: {redis: 'redis://u:HIDDEN@h:x'}\nbackends: 5\n",
        "cache: {redis: 'redis://u:HID#HIDDEN@h'}\nbackends: 5\n",
        "cache: {redis: 'redis://u:a/HIDDEN@h'}\nbackends: 5\n",
        "backends:\n  - api_key: |\n      HIDDEN\n      HIDDEN\n    urll: x\n",
        "backends: [{url: 'http://a:1', api_key: '${NO:-HIDDEN}', api_key_file: x}]\n",
        "tls:\n  cert: x\n  key: |\n    -----BEGIN PRIVATE KEY-----\n    HIDDEN\n    -----END PRIVATE KEY-----\n",
        // Syntax errors in and after secrets.
        "admin_token: \"HIDDEN\nzone: [\n",
        "admin_token: 'x' HIDDEN\n",
        "api_key:\n  HIDDEN: [\n  HIDDEN\n",
        "admin_token: @HIDDEN\n",
    ];
    for text in texts {
        let result = load_with(text, &[("SLUICEGATE_INTERRUPTION_TOKEN", "HIDDEN\u{1}")], &Flags::default());
        let problems = result.as_ref().map_or_else(|p| p.clone(), Loaded::problems);
        for format in [Format::Human, Format::Json, Format::Github] {
            let shown = config::render(&problems, format);
            assert!(!shown.contains(HIDDEN), "{text}\n--\n{shown}");
        }
        assert!(!format!("{problems:?}{result:?}").contains(HIDDEN), "{text}");
    }
    let loaded = load(texts[0]).unwrap();
    assert_eq!(loaded.config.admin.token.as_ref().unwrap().reveal(), "HIDDEN-1");
    let view = loaded.config.view();
    assert!(!view.to_string().contains(HIDDEN), "{view}");
    assert_eq!(view["admin_token"], "***");
    assert_eq!(view["backends"][0]["api_key"], "***");
}

#[test]
fn secrets_come_from_files_that_are_watched() {
    let folder = Folder::new("secrets");
    let token = folder.file("token", "of-the-file\r\n");
    folder.file("empty", "\n");
    let config = folder.file("c.yaml", &format!("admin_token_file: token\n{ONE}"));
    let loaded = config::load(Some(&config), &Env::default(), &Flags::default()).unwrap();
    assert_eq!(loaded.config.admin.token.as_ref().unwrap().reveal(), "of-the-file");
    assert_eq!(loaded.watch, [config.clone(), token]);
    let broken = format!("admin_token_file: empty\nadmin_token: ${{T}}\ninterruption_token_file: gone\n{ONE}");
    fs::write(&config, broken).unwrap();
    let problems = config::load(Some(&config), &[("T", "t")].into_iter().collect(), &Flags::default()).unwrap_err();
    let reasons: Vec<_> = problems.iter().map(|p| (p.line, p.reason.as_str())).collect();
    assert_eq!(reasons[0], (1, "`admin_token` and `admin_token_file` are both given"));
    assert!(reasons[1].0 == 3 && reasons[1].1.contains("cannot be read"), "{reasons:?}");
}

// ── Later versions, reload ─────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn later_sections_are_named_and_auth_stops_serve() {
    let loaded = load(&format!(
        "{ONE}profile: serverless\nstream: {{keepalive: 15s}}\nrouting: {{affinity: {{prefix: false}}}}\n"
    ))
    .unwrap();
    let named: Vec<_> = loaded.unsupported.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(named, ["profile", "routing.affinity"]);
    assert!(loaded.may_serve());
    let loaded = load(&format!("{ONE}auth: {{keys: [{{name: a, key: s}}]}}\n")).unwrap();
    assert!(!loaded.may_serve());
}

#[test]
fn a_reload_names_what_needs_a_restart() {
    let old = load(ONE).unwrap().config;
    let same = load(ONE).unwrap().config;
    assert!(config::diff(&old, &same).unwrap().is_empty());
    let new = load(&format!("{ONE}listen: 0.0.0.0:1\nworkers: 77\nadmin: off\n")).unwrap().config;
    assert_eq!(config::diff(&old, &new).unwrap_err(), ["listen", "admin", "workers"]);
    let new = load("backends: [{url: 'http://b:1'}]\nlog: {level: debug}\n").unwrap().config;
    let changes = config::diff(&old, &new).unwrap();
    assert!(changes.backends && changes.log && !changes.routing && !changes.access && !changes.other);
}

#[test]
fn the_view_is_a_configuration() {
    let text =
        format!("{ONE}drain: {{grace: 90s}}\nlimits: {{request_body: 1.5MiB}}\nrouting: {{aliases: {{a: b}}}}\n");
    let config = load(&text).unwrap().config;
    let again = load(&config.view().to_string()).unwrap().config;
    assert_eq!(config.view(), again.view());
    assert!(config::diff(&config, &again).unwrap().is_empty());
}

// ── Anything at all ────────────────────────────────────────────────────────────────────────────────────────────────

fn piece() -> impl Strategy<Value = String> {
    let words = [
        "backends",
        "url",
        "http://a:1",
        "auto",
        ":",
        ": ",
        "- ",
        "\n",
        "\n  ",
        "{",
        "}",
        "[",
        "]",
        "\"",
        "'",
        "&a ",
        "*a",
        "<<",
        "|\n",
        "!!str ",
        "${A}",
        "${",
        "$${",
        "}",
        "1",
        "10s",
        "api_key",
        "listen",
        "limits",
        "#",
        ",",
        "\t",
        "---\n",
        "\u{feff}",
        "é",
        "\0",
        "tls",
        "cert",
        "null",
        "~",
        "aliases",
        "routing",
        "unix:/",
        "%",
    ];
    prop_oneof![
        8 => proptest::sample::select(words.to_vec()).prop_map(str::to_owned),
        1 => any::<String>(),
    ]
}

const SECRETS: [&str; 8] = [
    "api_key: HIDDEN",
    "admin_token: \"HIDDEN\"",
    "api_key: 'HIDDEN",
    "- api_key: |\n   HIDDEN\n",
    "api_key: [HIDDEN",
    "api_key: {HIDDEN: 1",
    "interruption_token: &a HIDDEN",
    "url: http://user:HIDDEN@host",
];

#[test]
fn a_secret_under_a_name_that_is_given_twice_is_not_shown() {
    let shown = config::render(&said(": ---\n: api_key: HIDDEN\n"), Format::Human);
    assert!(shown.contains("given twice") && !shown.contains("HIDDEN"), "{shown}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_it_panic(pieces in proptest::collection::vec(piece(), 0..40)) {
        for problem in said(&pieces.concat()) {
            let _ = config::render(&[problem], Format::Human);
        }
    }

    #[test]
    fn no_text_shows_a_secret(
        before in proptest::collection::vec(piece(), 0..12),
        secret in proptest::sample::select(SECRETS.to_vec()),
        after in proptest::collection::vec(piece(), 0..12),
    ) {
        // What is commented out, an anchor, an alias or a tag is no name, and what stands below it no secret.
        let before = before.concat().replace(['#', '&', '*', '!'], "");
        let text = format!("{before}{secret}\n{}", after.concat());
        let shown = config::render(&said(&text), Format::Human);
        prop_assert!(!shown.contains("HIDDEN"), "{text}\n--\n{shown}");
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        said(&String::from_utf8_lossy(&bytes));
    }
}

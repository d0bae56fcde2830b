//! The dependency rules of `docs/architecture.md`, kept: each top-level module names only those it may use, and the
//! stages of the data plane do not know each other.

use std::{collections::BTreeSet, fs, path::Path};

/// module → what it may use; `error`, `body` and `telemetry` are level 0 and `mod tests` may use anything.
const MAY_USE: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("telemetry", &[]),
    ("body", &["error", "protocol", "runtime"]),
    ("protocol", &[]),
    ("runtime", &["telemetry"]),
    ("config", &["protocol"]),
    ("client", &["config", "runtime", "error", "body", "telemetry"]),
    ("listener", &["config", "runtime", "error", "body", "telemetry"]),
    ("fleet", &["config", "protocol", "runtime", "error", "body", "telemetry"]),
    ("proxy", &["fleet", "client", "listener", "config", "protocol", "runtime", "error", "body", "telemetry"]),
    ("control", &["fleet", "client", "config", "protocol", "runtime", "error", "body", "telemetry"]),
    ("admin", &["fleet", "config", "runtime", "error", "body", "telemetry"]),
    ("sim", &["listener", "runtime", "error", "body", "telemetry"]),
    (
        "app",
        &[
            "admin",
            "control",
            "proxy",
            "fleet",
            "client",
            "listener",
            "config",
            "protocol",
            "runtime",
            "error",
            "body",
            "telemetry",
        ],
    ),
    (
        "cli",
        &["app", "config", "sim", "control", "proxy", "client", "protocol", "runtime", "error", "body", "telemetry"],
    ),
];

/// Folders of `proxy/` that meet in `stack.rs` alone.
const STAGES: &[&str] = &["observe", "compress", "slim", "normalize", "local", "cache", "resume", "route", "upstream"];

#[test]
fn modules_name_only_what_they_may_use() {
    let mut broken = Vec::new();
    for (file, source) in sources() {
        let module = file.split(['/', '.']).next().unwrap_or_default().to_owned();
        if matches!(module.as_str(), "lib" | "main") {
            continue;
        }
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
            broken.push(format!("src/{file}: module `{module}` has no line in this test's table"));
            continue;
        };
        let used: BTreeSet<_> = paths(&source).into_iter().filter_map(|path| path.into_iter().next()).collect();
        let known = |name: &String| MAY_USE.iter().any(|(module, _)| module == name);
        broken.extend(
            used.iter()
                .filter(|name| known(name) && **name != module && !allowed.contains(&name.as_str()))
                .map(|name| format!("src/{file} uses crate::{name}: `{module}` may use {allowed:?}")),
        );
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn stages_of_the_data_plane_do_not_know_each_other() {
    let mut broken = Vec::new();
    for (file, source) in sources() {
        let Some(stage) = file.strip_prefix("proxy/").and_then(|rest| rest.split(['/', '.']).next()) else { continue };
        if !STAGES.contains(&stage) {
            continue;
        }
        for path in paths(&source) {
            let [first, other, ..] = path.as_slice() else { continue };
            if first == "proxy" && other != stage && STAGES.contains(&other.as_str()) {
                broken.push(format!("src/{file} uses proxy::{other}: stages meet in proxy/stack.rs"));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn paths_are_found_in_every_form_of_writing() {
    let source =
        "use crate::{a::B, c::{d, e::F}, g};\nfn f() -> crate::h::I { crate::j::k() } // crate::no\nuse crate::l;";
    let found: Vec<_> = paths(source).into_iter().map(|path| path.join("::")).collect();
    assert_eq!(found, ["a::B", "c::d", "c::e::F", "g", "h::I", "j::k", "l"]);
}

/// Every source file below `src`, by its path from there; `tests.rs` files and `tests/` folders are left out.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.file_stem().is_some_and(|name| name == "tests") {
                continue;
            } else if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &mut found);
    assert!(found.len() > 10, "sources are read");
    found
}

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The paths after `crate::`, braces opened up; comments and what follows `mod tests {` are not looked at.
fn paths(source: &str) -> Vec<Vec<String>> {
    let code = source.split("mod tests {").next().unwrap_or_default();
    let code: String =
        code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let whole_word = !code[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '$'));
        if whole_word {
            branch(&code[at + "crate::".len()..], &[], &mut found);
        }
    }
    found
}

/// Reads one path (`a::b`, `a::{b, c::d}`) with what stands before it; gives back what follows it.
fn branch<'a>(text: &'a str, before: &[String], found: &mut Vec<Vec<String>>) -> &'a str {
    let mut path = before.to_vec();
    let mut rest = text;
    loop {
        if let Some(mut list) = rest.strip_prefix('{') {
            while !list.trim_start().starts_with('}') && !list.trim().is_empty() {
                list = branch(list.trim_start(), &path, found).trim_start();
                list = list.strip_prefix(',').unwrap_or(list);
            }
            return list.trim_start().strip_prefix('}').unwrap_or("");
        }
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        if end == 0 {
            // `*`, or something that is no path: step over it.
            found.push(path);
            return rest.get(1..).unwrap_or("");
        }
        path.push(rest[..end].to_owned());
        rest = &rest[end..];
        match rest.strip_prefix("::") {
            Some(more) => rest = more,
            None => {
                found.push(path);
                let renamed = rest.trim_start().strip_prefix("as ");
                return renamed.map_or(rest, |name| name.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'));
            }
        }
    }
}

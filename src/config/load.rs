//! From a file, the environment and flags to a [`Config`]: flags over environment over file over defaults.
//!
//! Everything that is wrong is found in one go: in the YAML, in its structure, and in what it means.

use std::{
    collections::{HashMap, HashSet},
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Config, Problem, Severity, Snippet,
    de::{self, path_text},
    env::{self, Env},
    file::FileConfig,
    later, secret,
    tree::{self, At, Node, Span, Value},
    validate,
};

/// A greater file is not a configuration.
const MAX_FILE: u64 = 4 << 20;

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// In place of the file's backends.
    pub backends: Vec<String>,
    pub listen: Option<String>,
    pub admin: Option<String>,
    pub log_format: Option<String>,
    pub log_level: Option<String>,
}

/// A configuration that holds, and what there is to say about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// Where it was read from, if from a file.
    pub file: Option<PathBuf>,
    /// Worth a look, but no hindrance.
    pub warnings: Vec<Problem>,
    /// Fields that this version accepts and does not act on. Those whose absence would do harm are errors.
    pub unsupported: Vec<Problem>,
    /// Files whose change asks for a reload: the configuration, secrets, certificates.
    pub watch: Vec<PathBuf>,
}

impl Loaded {
    /// Whether `serve` may run with it; if not, the errors among `unsupported` say why.
    pub fn may_serve(&self) -> bool {
        !self.unsupported.iter().any(Problem::is_error)
    }

    /// All there is to say.
    pub fn problems(&self) -> Vec<Problem> {
        self.warnings.iter().chain(&self.unsupported).cloned().collect()
    }
}

/// Reads, lays over, validates. `path` is that of `--config`; without it the usual places are searched.
///
/// # Errors
/// Every problem found, warnings among them, in the order of their places.
pub fn load(path: Option<&Path>, env: &Env, flags: &Flags) -> Result<Loaded, Vec<Problem>> {
    let file = match find(path, env, flags) {
        Ok(file) => file,
        Err(problem) => return Err(vec![*problem]),
    };
    match file {
        None => from_text("", None, env, flags),
        Some(path) => {
            let text = read(&path).map_err(|problem| vec![*problem])?;
            from_text(&text, Some(&path), env, flags)
        }
    }
}

impl Config {
    /// A gateway before these backends, all else at its default.
    ///
    /// # Errors
    /// As [`load`].
    pub fn from_backends(urls: &[String], listen: Option<&str>) -> Result<Self, Vec<Problem>> {
        let flags = Flags { backends: urls.to_vec(), listen: listen.map(str::to_owned), ..Flags::default() };
        from_text("", None, &Env::default(), &flags).map(|loaded| loaded.config)
    }
}

/// As [`load`], from text that was read already; `path` names it and is what relative paths start from.
///
/// # Errors
/// As [`load`].
pub fn from_text(text: &str, path: Option<&Path>, env: &Env, flags: &Flags) -> Result<Loaded, Vec<Problem>> {
    let (mut root, yaml_faults) = tree::parse(text);
    let mut source = Source::new(text, path, &root);
    let no_section = !matches!(root.value, Value::Map(_));
    // What is not there is not missing then.
    source.cut_off = no_section || yaml_faults.iter().any(|fault| fault.fatal);
    source.incomplete = source.cut_off || yaml_faults.iter().any(|fault| fault.left_out);
    let mut problems: Vec<Problem> = yaml_faults.iter().map(|fault| source.yaml(fault)).collect();

    let mut faults = Vec::new();
    env::interpolate(&mut root, "", env, &mut faults);
    lay_over(&mut root, env, flags, &mut faults);
    source.given.extend(faults.iter().map(|f| f.path.clone()));
    problems.extend(faults.into_iter().map(|f| {
        let severity = if f.warning { Severity::Warning } else { Severity::Error };
        source.problem(severity, &f.at, &f.path, f.reason, f.help)
    }));

    let (written, faults): (FileConfig, _) = de::read(&mut root);
    source.given.extend(faults.iter().map(|f| path_text(&f.path)));
    source.given.extend(faults.iter().filter_map(de::Fault::meant));
    problems.extend(faults.into_iter().map(|f| {
        let at = f.at.map_or_else(|| root.at.clone(), |at| *at);
        source.problem(Severity::Error, &at, &path_text(&f.path), f.reason, f.help)
    }));
    if source.cut_off {
        return Err(sorted(problems));
    }

    source.index(&root);
    let checked = validate::validate(&written, &source);
    problems.extend(checked.problems);
    if problems.iter().any(Problem::is_error) {
        return Err(sorted(problems));
    }
    let mut watch: Vec<PathBuf> = path.map(Path::to_path_buf).into_iter().chain(checked.files).collect();
    watch.sort();
    watch.dedup();
    Ok(Loaded {
        config: checked.config,
        file: path.map(Path::to_path_buf),
        warnings: sorted(problems),
        unsupported: sorted(later::unsupported(&written, &source)),
        watch,
    })
}

fn sorted(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort_by_key(|p| (p.line == 0, p.line, p.column));
    problems.dedup();
    problems
}

/// The file to read: named by flag, by variable, or the first that exists of the usual places. With `--backend` and
/// no named file there is none.
fn find(path: Option<&Path>, env: &Env, flags: &Flags) -> Result<Option<PathBuf>, Box<Problem>> {
    if let Some(path) = path {
        return Ok(Some(path.to_path_buf()));
    }
    if let Some(path) = env.get("SLUICEGATE_CONFIG").filter(|p| !p.is_empty()) {
        return Ok(Some(PathBuf::from(path)));
    }
    if !flags.backends.is_empty() {
        return Ok(None);
    }
    let places = usual_places(env);
    if let Some(found) = places.iter().find(|p| p.exists()) {
        return Ok(Some(found.clone()));
    }
    if env.names().any(|name| name.starts_with("SLUICEGATE_BACKENDS")) {
        return Ok(None);
    }
    let names: Vec<_> = places.iter().map(|p| p.display().to_string()).collect();
    let reason = format!("no configuration; looked for {}", names.join(", "));
    let problem = Problem::general(Severity::Error, "sluicegate", reason);
    Err(Box::new(problem.help("name a file with --config FILE, or a backend with --backend URL")))
}

/// Where a configuration is looked for, in this order.
fn usual_places(env: &Env) -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from("sluicegate.yaml")];
    let home = env.get("XDG_CONFIG_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let home = home.or_else(|| env.get("HOME").filter(|h| !h.is_empty()).map(|h| Path::new(h).join(".config")));
    places.extend(home.map(|h| h.join("sluicegate/sluicegate.yaml")));
    places.push(PathBuf::from("/etc/sluicegate/sluicegate.yaml"));
    places
}

fn read(path: &Path) -> Result<String, Box<Problem>> {
    let name = path.display().to_string();
    let fail = |reason: String, help: Option<&str>| {
        let mut problem = Problem::general(Severity::Error, name.clone(), reason);
        problem.help = help.map(str::to_owned);
        Box::new(problem)
    };
    let file = std::fs::File::open(path).map_err(|e| fail(format!("cannot be opened: {e}"), None))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| fail(format!("cannot be read: {e}"), None))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(fail("is greater than 4 MiB, which no configuration is".to_owned(), None));
    }
    String::from_utf8(bytes).map_err(|e| {
        let before = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        fail(format!("is not UTF-8 (line {line})"), Some("save it as UTF-8"))
    })
}

/// Environment, then flags, then `PORT` if nobody gave an address.
fn lay_over(root: &mut Node, env: &Env, flags: &Flags, faults: &mut Vec<env::Fault>) {
    if root.is_unset() {
        *root = Node::empty();
    }
    env::override_fields(root, env, faults);
    let values = [
        (&["listen"] as &[&str], &flags.listen, "--listen"),
        (&["admin"], &flags.admin, "--admin"),
        (&["log", "format"], &flags.log_format, "--log-format"),
        (&["log", "level"], &flags.log_level, "--log-level"),
    ];
    for (steps, value, flag) in values {
        if let Some(value) = value {
            env::set(root, steps, Node::text(value.as_str(), At::Named(Arc::from(flag))));
        }
    }
    if !flags.backends.is_empty() {
        let at = At::Named(Arc::from("--backend"));
        let of = |url: &String| {
            let mut backend = Node { value: Value::Map(Vec::new()), at: at.clone() };
            env::set(&mut backend, &["url"], Node::text(url.as_str(), at.clone()));
            backend
        };
        let list = Value::List(flags.backends.iter().map(of).collect());
        env::set(root, &["backends"], Node { value: list, at: at.clone() });
    }
    if let Some(port) = env.get("PORT").filter(|p| !p.is_empty())
        && root.get("listen").is_none_or(Node::is_unset)
    {
        let at = At::Named(Arc::from("environment variable PORT"));
        env::set(root, &["listen"], Node::text(format!("0.0.0.0:{port}"), at));
    }
}

/// The text behind the tree: makes [`Problem`]s of places.
pub(super) struct Source {
    name: String,
    /// What relative paths start from.
    base: PathBuf,
    lines: Vec<String>,
    secrets: secret::Secrets,
    /// The text is no section, or ends at a syntax error.
    cut_off: bool,
    /// The tree does not know of all secrets.
    incomplete: bool,
    /// Path as `FileConfig` has it (holes not counted) → place, and path as it was written.
    places: HashMap<String, (At, String)>,
    /// Fields, as written, that were given and were wrong: to call them missing too would be one word too many.
    given: HashSet<String>,
    /// Paths of values that variables had a part in.
    from_env: HashSet<String>,
}

impl Source {
    fn new(text: &str, path: Option<&Path>, root: &Node) -> Self {
        let base = path.and_then(Path::parent).map(Path::to_path_buf).unwrap_or_default();
        let name = path.map_or_else(|| "sluicegate".to_owned(), |p| p.display().to_string());
        Self {
            name,
            base,
            lines: text.lines().map(str::to_owned).collect(),
            secrets: secret::Secrets::of(root),
            cut_off: false,
            incomplete: false,
            places: HashMap::new(),
            given: HashSet::new(),
            from_env: HashSet::new(),
        }
    }

    /// Notes where everything is, once all holes are dug.
    fn index(&mut self, root: &Node) {
        self.add(root, String::new(), String::new());
    }

    fn add(&mut self, node: &Node, path: String, shown: String) {
        match &node.value {
            Value::Map(entries) => {
                for entry in entries.iter().filter(|e| !e.value.is_unset()) {
                    self.add(&entry.value, env::join(&path, &entry.key), env::join(&shown, &entry.key));
                }
            }
            Value::List(nodes) => {
                let read = nodes.iter().enumerate().filter(|(_, n)| !matches!(n.value, Value::Hole));
                for (i, (written, node)) in read.enumerate() {
                    self.add(node, format!("{path}[{i}]"), format!("{shown}[{written}]"));
                }
            }
            Value::Scalar(scalar) if scalar.from_env => drop(self.from_env.insert(path.clone())),
            _ => {}
        }
        self.places.insert(path, (node.at.clone(), shown));
    }

    /// A path of the file as one that can be opened.
    pub(super) fn resolve(&self, file: &str) -> PathBuf {
        self.base.join(file)
    }

    /// Whether somebody gave this field a value.
    pub(super) fn is_set(&self, path: &str) -> bool {
        self.places.contains_key(path)
    }

    /// Whether a field of `section` was given a value that could not be used.
    pub(super) fn was_given(&self, section: &str, field: &str) -> bool {
        let shown = self.places.get(section).map_or(section, |(_, shown)| shown);
        self.given.contains(&env::join(shown, field))
    }

    /// Whether a value stands in the file as it is, with no variable in it.
    pub(super) fn is_written_out(&self, path: &str) -> bool {
        self.line(path).is_some() && !self.from_env.contains(path)
    }

    /// The line of a field, if it stands in the file.
    pub(super) fn line(&self, path: &str) -> Option<usize> {
        match self.places.get(path) {
            Some((At::File(span), _)) => Some(span.line),
            _ => None,
        }
    }

    /// A problem at a field, or at the nearest section around it that was written.
    pub(super) fn at(&self, severity: Severity, path: &str, reason: String, help: Option<String>) -> Problem {
        let mut up = path;
        loop {
            if let Some((at, shown)) = self.places.get(up).filter(|_| !up.is_empty()) {
                let shown = format!("{shown}{}", &path[up.len()..]);
                return self.problem(severity, at, &shown, reason, help);
            }
            match up.rfind(['.', '[']) {
                Some(i) => up = &up[..i],
                None => break,
            }
        }
        let mut problem = Problem::general(severity, self.name.clone(), reason);
        problem.path = path.to_owned();
        problem.help = help;
        problem
    }

    fn problem(&self, severity: Severity, at: &At, path: &str, reason: String, help: Option<String>) -> Problem {
        let mut problem = Problem::general(severity, self.name.clone(), reason);
        problem.path = path.to_owned();
        problem.help = help;
        match at {
            At::Named(name) => problem.file = name.to_string(),
            At::File(span) => {
                (problem.line, problem.column) = (span.line, span.column);
                problem.snippet = self.snippet(span);
            }
        }
        problem
    }

    fn yaml(&self, fault: &tree::Fault) -> Problem {
        let at = At::File(fault.span);
        let mut problem = self.problem(Severity::Error, &at, "", fault.reason.clone(), fault.help.clone());
        let line = self.lines.get(fault.span.line.saturating_sub(1)).map_or("", String::as_str);
        if fault.fatal && problem.help.is_none() {
            let help = match flow_variable(line) {
                true => "inside {…} and […] YAML wants quotes: \"${VAR}\"",
                false => "look at brackets, quotes and indentation, here and in the lines above",
            };
            problem.help = Some(help.to_owned());
        }
        problem
    }

    /// The source line, blanked, with the caret's place in it.
    fn snippet(&self, span: &Span) -> Option<Snippet> {
        const MOST: usize = 160;
        if self.incomplete && secret::may_be_secret(&self.lines, span.line) {
            return None;
        }
        let line = self.lines.get(span.line.checked_sub(1)?)?;
        let end = if span.end_line == span.line { span.end_column } else { usize::MAX };
        let (text, start, end) = self.secrets.mask(span.line, line, span.column, end);
        let text: String = text.chars().take(MOST).map(|c| if c.is_control() && c != '\t' { ' ' } else { c }).collect();
        let start = start.min(MOST);
        let width = end.min(MOST + 1).saturating_sub(start).max(1);
        Some(Snippet { text, start, width })
    }
}

/// Whether a line has `${…}` in a flow collection, whose end the `}` is taken for.
fn flow_variable(line: &str) -> bool {
    line.find("${").is_some_and(|i| line[..i].contains(['{', '[']))
}

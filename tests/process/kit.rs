//! Processes of the binary: started, asked, signalled, watched, and gone with their test.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::support::{Answer, Exchange};

const BINARY: &str = env!("CARGO_BIN_EXE_sluicegate");
/// Between two looks at a condition, and how many looks it gets: a minute.
const LOOK: Duration = Duration::from_millis(20);
const LOOKS: usize = 3_000;

/// Polls until `look` gives something; `what` says in the failure what never came.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..LOOKS {
        if let Some(found) = look() {
            return found;
        }
        thread::park_timeout(LOOK);
    }
    panic!("never came: {what}");
}

/// Held by a test that needs the machine for itself.
pub fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets this process have `n` descriptors, if it does not yet.
pub fn descriptors(n: usize) {
    let limit = format!("--nofile={n}:");
    let status = Command::new("prlimit").args(["--pid", &std::process::id().to_string(), &limit]).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "{n} descriptors are needed: raise the hard limit of ulimit -n"
    );
}

/// A port that was free a moment ago, below those that the system gives to clients: what was killed can listen there
/// again, and no client's own end sits on it meanwhile.
pub fn free_port() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 500) as u16 * 20;
    (0..1_000)
        .map(|_| SocketAddr::from(([127, 0, 0, 1], 20_000 + (start + NEXT.fetch_add(1, Relaxed)) % 12_000)))
        .find(|address| TcpListener::bind(address).is_ok())
        .expect("a free port")
}

/// A folder that goes with its test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("sluicegate-process-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// As Kubernetes mounts a ConfigMap: `name` → `..data/name`, and `..data` → a folder that is swapped as a whole.
    pub fn mount(&self, name: &str, content: &str) -> PathBuf {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let version = format!("..version-{}", NEXT.fetch_add(1, Relaxed));
        self.write(&format!("{version}/{name}"), content);
        let link = |to: &str, from: &Path| std::os::unix::fs::symlink(to, from).unwrap();
        link(&version, &self.path("..data_tmp"));
        std::fs::rename(self.path("..data_tmp"), self.path("..data")).unwrap();
        let path = self.path(name);
        if path.symlink_metadata().is_err() {
            link(&format!("..data/{name}"), &path);
        }
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process that ends with its test.
pub struct Process {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Process {
    /// `sluicegate` with `arguments`; stdout goes where `stdout` says, stderr is kept.
    pub fn start(arguments: &[&str], stdout: Stdio) -> Self {
        let mut command = Command::new(BINARY);
        command.args(arguments);
        Self::spawn(command, stdout)
    }

    /// The same with no more than `n` descriptors.
    pub fn start_with_descriptors(n: usize, arguments: &[&str]) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", &format!(r#"ulimit -n {n} && exec "$0" "$@""#), BINARY]).args(arguments);
        Self::spawn(command, Stdio::null())
    }

    fn spawn(mut command: Command, stdout: Stdio) -> Self {
        let mut child = command
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::default();
        let (heard, stderr) = (Arc::clone(&said), child.stderr.take().unwrap());
        thread::spawn(move || listen(stderr, &heard));
        Self { child, said }
    }

    /// Everything it has said on stderr.
    pub fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Waits until a line on stderr has `text`, and gives that line.
    pub fn line(&mut self, text: &str) -> String {
        until(text, || {
            let ended = self.child.try_wait().unwrap();
            let line = self.said().lines().find(|line| line.contains(text)).map(str::to_owned);
            assert!(line.is_some() || ended.is_none(), "it ended with {ended:?}: {}", self.said());
            line
        })
    }

    /// Sends the signal `name`, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(sent.success());
    }

    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        until("its end", || self.child.try_wait().unwrap())
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What it prints, when it was started with a pipe.
    pub fn stdout(&mut self) -> std::process::ChildStdout {
        self.child.stdout.take().unwrap()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory, MiB.
    pub fn resident(&self) -> f64 {
        memory(self.id(), "VmRSS:")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- process {} said\n{}", self.child.id(), self.said());
        }
    }
}

/// What the kernel counts for process `id` under `name`, MiB (proc(5), status).
pub fn memory(id: u32, name: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

/// The most memory that a process has had, as its kernel counts it.
pub struct Peak(u32);

impl Peak {
    /// From now on.
    pub fn of(gate: &Gate) -> Self {
        let id = gate.process.id();
        // 5: the peak begins anew (proc(5), clear_refs).
        std::fs::write(format!("/proc/{id}/clear_refs"), "5").unwrap();
        Self(id)
    }

    /// MiB.
    pub fn peak(&self) -> f64 {
        memory(self.0, "VmHWM:")
    }
}

fn listen(stderr: ChildStderr, said: &Mutex<String>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        let mut said = said.lock().unwrap();
        said.push_str(&line);
        said.push('\n');
    }
}

/// A simulated backend, always on the same port.
pub struct Sim {
    pub addr: SocketAddr,
    arguments: Vec<String>,
    process: Process,
}

impl Sim {
    /// `sluicegate sim` with `arguments`, listening.
    pub fn start(arguments: &[&str]) -> Self {
        let addr = free_port();
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Self { addr, process: Self::listen(addr, &arguments), arguments }
    }

    fn listen(addr: SocketAddr, arguments: &[String]) -> Process {
        let listen = addr.to_string();
        let mut all = vec!["sim", "--listen", &listen];
        all.extend(arguments.iter().map(String::as_str));
        let mut process = Process::start(&all, Stdio::null());
        process.line("listening on");
        process
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    pub fn terminate(&mut self) {
        self.process.signal("TERM");
        self.process.ended();
    }

    pub fn restart(&mut self) {
        self.process = Self::listen(self.addr, &self.arguments);
    }

    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Speaks to the sim itself, past the gateway.
    pub fn post(&self, path: &str, json: &str) -> Answer {
        Exchange::start(self.addr, "POST", path, &[], json.as_bytes()).finish()
    }

    pub fn state(&self) -> Value {
        Exchange::start(self.addr, "GET", "/sim/state", &[], b"").finish().json()
    }
}

/// Two backends `a` and `b`, as lines of configuration.
pub fn backends(a: &Sim, b: &Sim) -> String {
    format!("backends:\n  - {{name: a, url: 'http://{}'}}\n  - {{name: b, url: 'http://{}'}}\n", a.addr, b.addr)
}

/// A gateway.
pub struct Gate {
    pub addr: SocketAddr,
    pub admin: SocketAddr,
    pub process: Process,
    pub folder: Folder,
}

/// What every configuration here begins with.
const LISTEN: &str = "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nworkers: 2\n";

impl Gate {
    /// `sluicegate serve` with `config` in a file of its own; returns once it listens.
    pub fn start(config: &str) -> Self {
        let folder = Folder::new();
        let file = folder.write("sluicegate.yaml", &Self::whole(config));
        let process = Process::start(&["serve", "--config", file.to_str().unwrap()], Stdio::null());
        Self::of(process, folder)
    }

    /// One that is started already.
    pub fn of(mut process: Process, folder: Folder) -> Self {
        let line = process.line("serving");
        let address = |name: &str| {
            let rest = line.split(name).nth(1).unwrap_or_else(|| panic!("no {name} in {line}"));
            rest.split(' ').next().unwrap().parse().unwrap()
        };
        let (addr, admin) = (address("listen="), address("admin="));
        Self { addr, admin, process, folder }.ready()
    }

    fn ready(self) -> Self {
        until("ready", || (self.admin("/readyz").status == 200).then_some(()));
        self
    }

    /// `config` with the addresses of a test.
    pub fn whole(config: &str) -> String {
        format!("{LISTEN}{config}")
    }

    /// Waits until all backends are known to be well.
    pub fn healthy(self) -> Self {
        self.until_states(|states| states.iter().all(|state| state == "healthy"));
        self
    }

    pub fn until_states(&self, wanted: impl Fn(&[String]) -> bool) {
        until("the wanted states of the backends", || {
            let view = self.admin("/api/v1/backends").json();
            let states = view["backends"].as_array().unwrap().iter().map(|b| b["state"].as_str().unwrap().to_owned());
            wanted(&states.collect::<Vec<_>>()).then_some(())
        });
    }

    /// Waits until backend number `i` is in `state`.
    pub fn until_state(&self, i: usize, state: &str) {
        self.until_states(|states| states[i] == state);
    }

    /// `GET path` of the admin plane, which takes only its own name for a host.
    pub fn admin(&self, path: &str) -> Answer {
        let head = format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.admin);
        Exchange::raw(self.admin, head.as_bytes()).finish()
    }

    /// The value of a series; 0 when it is not there.
    pub fn metric(&self, series: &str) -> f64 {
        metric(&self.admin("/metrics").text(), series)
    }

    /// Waits until a series is as `wanted` says; gives its value.
    pub fn until_metric(&self, series: &str, wanted: impl Fn(f64) -> bool) -> f64 {
        until(series, || Some(self.metric(series)).filter(|value| wanted(*value)))
    }

    /// How reloads went: applied, refused, problems of the newest.
    pub fn reloads(&self) -> (u64, u64, Vec<String>) {
        let reload = self.admin("/api/v1/config").json()["reload"].clone();
        let problems = reload["problems"].as_array().unwrap().iter().map(|p| p.as_str().unwrap().to_owned());
        (reload["applied"].as_u64().unwrap(), reload["refused"].as_u64().unwrap(), problems.collect())
    }

    /// Starts a request whose answer is read later.
    pub fn start_post(&self, path: &str, json: &str) -> Exchange {
        Exchange::start(self.addr, "POST", path, &[("content-type", "application/json")], json.as_bytes())
    }

    pub fn post(&self, path: &str, json: &str) -> Answer {
        self.start_post(path, json).finish()
    }
}

pub fn metric(text: &str, series: &str) -> f64 {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok()).unwrap_or_default()
}

/// A connection that is kept, for one request after the other.
pub struct Kept(BufReader<TcpStream>);

impl Kept {
    pub fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(BufReader::new(stream))
    }

    /// Status and body; the answer must have a length.
    pub fn ask(&mut self, method: &str, path: &str, json: &str) -> std::io::Result<(u16, String)> {
        self.send(method, path, json)?;
        self.answer()
    }

    pub fn send(&mut self, method: &str, path: &str, json: &str) -> std::io::Result<()> {
        let address = self.0.get_ref().peer_addr()?;
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {}\r\n\r\n{json}", json.len());
        self.0.get_mut().write_all(head.as_bytes())
    }

    pub fn answer(&mut self) -> std::io::Result<(u16, String)> {
        let wrong = |line: &str| std::io::Error::other(format!("unexpected line {line:?}"));
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| wrong(&line))?;
        let mut length = 0;
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            match line.trim_end().to_ascii_lowercase().split_once(": ") {
                Some(("content-length", n)) => length = n.parse().map_err(|_| wrong(&line))?,
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

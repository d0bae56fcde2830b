//! The gateway's admin plane, as the demo uses it: it gives notices, and reads what became of streams.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// An answer is read up to this size.
const MOST: u64 = 4 << 20;
/// An admin plane that takes longer has nothing to say.
const PATIENCE: Duration = Duration::from_secs(5);

/// Streams that went on at another backend, since the gateway started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Resumed {
    /// By token ids, by text, from the start, with only the end missing.
    pub(super) modes: [u64; 4],
    /// Tokens that were not computed again.
    pub(super) kept: u64,
    /// Seconds that they stood still, together.
    pub(super) gap: f64,
    pub(super) refused: u64,
}

const MODES: [&str; 4] = ["tokens", "text", "restart", "end"];

impl Resumed {
    /// What the gateway at `admin` has counted.
    pub(super) async fn of(admin: SocketAddr) -> io::Result<Self> {
        Ok(Self::read(&ask(admin, "GET", "/metrics", "").await?))
    }

    fn read(metrics: &str) -> Self {
        let mut resumed = Self::default();
        for line in metrics.lines() {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let value: f64 = value.parse().unwrap_or_default();
            if name.starts_with("sluicegate_resumes_total{") {
                let mode = MODES.iter().position(|mode| name.contains(&format!("mode=\"{mode}\"")));
                if let Some(mode) = mode {
                    resumed.modes[mode] += value as u64;
                }
            } else if name.starts_with("sluicegate_resumes_refused_total{") {
                resumed.refused += value as u64;
            } else if name == "sluicegate_resume_tokens_kept_total" {
                resumed.kept = value as u64;
            } else if name == "sluicegate_resume_gap_seconds_sum" {
                resumed.gap = value;
            }
        }
        resumed
    }

    /// How many went on.
    pub(super) fn count(&self) -> u64 {
        self.modes.iter().sum()
    }

    /// What came since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            modes: std::array::from_fn(|mode| self.modes[mode] - before.modes[mode]),
            kept: self.kept - before.kept,
            gap: self.gap - before.gap,
            refused: self.refused - before.refused,
        }
    }
}

/// Says that the machine of `backend` will be taken away after `lead`.
pub(super) async fn notice(admin: SocketAddr, backend: &str, lead: Duration) -> io::Result<()> {
    let time = humantime(lead);
    let path = format!("/api/v1/backends/{backend}/interruption");
    ask(admin, "POST", &path, &format!("{{\"action\":\"terminate\",\"time\":\"{time}\"}}")).await.map(drop)
}

/// Says that `backend` is there again.
pub(super) async fn undrain(admin: SocketAddr, backend: &str) -> io::Result<()> {
    ask(admin, "POST", &format!("/api/v1/backends/{backend}/undrain"), "").await.map(drop)
}

/// The time of day `lead` from now, as RFC 3339 writes it.
fn humantime(lead: Duration) -> String {
    let stamp = crate::telemetry::time::stamp(std::time::SystemTime::now() + lead);
    String::from_utf8_lossy(&stamp).into_owned()
}

async fn ask(admin: SocketAddr, method: &str, path: &str, body: &str) -> io::Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(admin).await?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MOST).read_to_end(&mut answer).await?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = tokio::time::timeout(PATIENCE, exchange).await??;
    if answer.starts_with("HTTP/1.1 2") {
        return Ok(answer);
    }
    Err(io::Error::other(format!("the gateway answered: {}", answer.lines().next().unwrap_or("nothing"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read() {
        let text = "# TYPE x counter\nsluicegate_resumes_total{cause=\"cut\",mode=\"text\"} 2\n\
                    sluicegate_resumes_total{cause=\"move\",mode=\"text\"} 3\n\
                    sluicegate_resumes_total{cause=\"move\",mode=\"tokens\"} 1\n\
                    sluicegate_resumes_refused_total{reason=\"tool-call\"} 4\n\
                    sluicegate_resume_tokens_kept_total 57\nsluicegate_resume_gap_seconds_sum 0.25\n";
        let now = Resumed::read(text);
        assert_eq!(now, Resumed { modes: [1, 5, 0, 0], kept: 57, gap: 0.25, refused: 4 });
        let before = Resumed { modes: [0, 2, 0, 0], kept: 7, gap: 0.0, refused: 4 };
        assert_eq!(now.since(&before).count(), 4);
    }
}

//! A question to the admin plane of a running gateway: small, blocking, for hooks and health checks.

use std::{
    fs,
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};

/// Which gateway, and how to get in.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Remote {
    /// Address of its admin plane
    #[arg(long, env = "SLUICEGATE_ADMIN", default_value = "127.0.0.1:9090", value_name = "ADDRESS")]
    admin: String,
    /// Its admin_token
    #[arg(long, env = "SLUICEGATE_ADMIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// A file that holds its admin_token
    #[arg(long, conflicts_with = "token", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// How long to wait for each answer, in seconds
    #[arg(long, default_value_t = 5.0, value_parser = seconds, value_name = "SECONDS")]
    timeout: f64,
}

/// An answer is read up to this size; the rest is of no interest here.
const LARGEST: u64 = 1 << 20;

/// What came back.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

impl Remote {
    pub(super) fn address(&self) -> &str {
        &self.admin
    }

    /// Sends one request on a connection of its own.
    ///
    /// # Errors
    /// When nobody answers, or not in HTTP.
    pub(super) fn ask(&self, method: &str, path: &str) -> io::Result<Answer> {
        let mut stream = self.connect()?;
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.admin);
        if let Some(token) = self.token()? {
            head += &format!("authorization: Bearer {token}\r\n");
        }
        head += "content-length: 0\r\n\r\n";
        stream.write_all(head.as_bytes())?;
        let mut text = Vec::new();
        stream.take(LARGEST).read_to_end(&mut text)?;
        parse(&String::from_utf8_lossy(&text)).ok_or_else(|| io::Error::other("the answer is not HTTP"))
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let timeout = Duration::from_secs_f64(self.timeout);
        let mut last = io::Error::other("the name has no address");
        for address in self.admin.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, timeout) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(timeout))?;
                    stream.set_write_timeout(Some(timeout))?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn token(&self) -> io::Result<Option<String>> {
        match &self.token_file {
            Some(file) => Ok(Some(fs::read_to_string(file)?.trim_end().to_owned())),
            None => Ok(self.token.clone()),
        }
    }
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if (0.01..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("between 0.01 and 3600 seconds".to_owned()) }
}

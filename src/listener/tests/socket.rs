use super::*;
use crate::config::Listen;

#[test]
fn a_port_in_use_is_said_and_not_shared() {
    let first = bind(&Listen::Tcp(([127, 0, 0, 1], 0).into()), 3).unwrap();
    let address = first[0].address().unwrap();
    assert!(first.iter().all(|socket| socket.address() == Some(address)));
    let error = bind(&Listen::Tcp(address), 1).unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot listen on {address}: another process")), "{error}");
    drop(first);
    bind(&Listen::Tcp(address), 1).unwrap();
}

#[test]
fn an_address_of_another_machine_is_said() {
    let error = bind(&Listen::Tcp("192.0.2.1:1".parse().unwrap()), 1).unwrap_err().to_string();
    assert!(error.contains("no such address"), "{error}");
}

#[test]
fn a_unix_socket_left_behind_is_replaced_and_a_living_one_is_not() {
    let folder = std::env::temp_dir().join(format!("sluicegate-listener-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("s");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let sockets = bind(&Listen::Unix(path.clone()), 2).unwrap();
    let error = bind(&Listen::Unix(path.clone()), 1).unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
    drop(sockets);
    assert!(!path.exists(), "removed at the end");
    std::fs::write(&path, "a file").unwrap();
    let error = bind(&Listen::Unix(path.clone()), 1).unwrap_err().to_string();
    assert!(error.contains("in the way"), "{error}");
    assert!(path.exists());
    let error = bind(&Listen::Unix(folder.join("none/s")), 1).unwrap_err().to_string();
    assert!(error.contains("folder"), "{error}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn requests_pass_over_a_unix_socket() {
    let path = std::env::temp_dir().join(format!("sluicegate-unix-{}", std::process::id()));
    let socket = bind(&Listen::Unix(path.clone()), 1).unwrap().remove(0);
    paused(async move {
        let (_handle, drain) = DrainHandle::new();
        let ticker = Ticker::default();
        let make = |peer: Rc<Peer>| {
            assert_eq!(peer.address, None);
            hyper::service::service_fn(|request| -> Answering { Box::pin(echo(request)) })
        };
        start(serve(socket, Rc::new(settings()), ticker, drain, Stats::noop(), make));
        let mut client = tokio::net::UnixStream::connect(path).await.unwrap();
        client.write_all(b"GET /x HTTP/1.0\r\n\r\n").await.unwrap();
        let mut all = String::new();
        client.read_to_string(&mut all).await.unwrap();
        assert!(all.contains("GET /x "), "{all}");
    });
}

#[test]
fn a_worker_well_over_the_mean_hands_connections_over() {
    paused(async {
        let mut sockets = bind(&Listen::Tcp(([127, 0, 0, 1], 0).into()), 3).unwrap();
        let address = sockets[0].address().unwrap();
        let idle = sockets.split_off(1);
        let (listener, seat) = sockets.remove(0).into_parts().unwrap();
        // Only the first accepts; the kernel gives it a third, so clients come until it has 60.
        let mut clients = Vec::new();
        let mut kept = Vec::new();
        let mut moved = 0;
        while kept.len() + moved < 60 {
            clients.push(TcpStream::connect(address).await.unwrap());
            tokio::task::yield_now().await;
            let polled = poll_fn(|cx| Poll::Ready(listener.poll_accept(cx))).await;
            if let Poll::Ready(accepted) = polled {
                match seat.keep(accepted.unwrap()) {
                    Some(here) => kept.push(here),
                    None => moved += 1,
                }
            }
        }
        // The mean is 20; it keeps 8 more.
        assert_eq!((kept.len(), moved), (28, 32));
        let seats: Vec<_> = idle.into_iter().map(|socket| socket.into_parts().unwrap().1).collect();
        assert!(seats.iter().all(|seat| seat.inbox.len() >= 15), "both got some");
    });
}

#[test]
fn a_service_of_plain_incoming_works_but_never_folds_after_a_body() {
    paused(async {
        let socket = bind(&Listen::Tcp(([127, 0, 0, 1], 0).into()), 1).unwrap().remove(0);
        let address = socket.address().unwrap();
        let (_handle, drain) = DrainHandle::new();
        let ticker = Ticker::default();
        start(ticker.clone().run());
        let counts = Counts::default();
        let make = |_| {
            hyper::service::service_fn(|request: Request<hyper::body::Incoming>| -> Answering {
                Box::pin(async move {
                    let body = Body::upload(request.into_body()).read(100).await.unwrap();
                    Ok(Response::new(Body::whole(body)))
                })
            })
        };
        start(serve(socket, Rc::new(settings()), ticker, drain, counts.stats(), make));
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody").await.unwrap();
        until(&mut client, "body").await;
        secs(5).await;
        assert_eq!(count(&counts.folded), 0);
        secs(75).await;
        assert_eq!(rest(&mut client).await, "", "closed when idle all the same");
    });
}

/// The limit of descriptors is the process', so the test runs itself once more in one of its own.
#[test]
fn connections_wait_while_descriptors_are_short() {
    const INNER: &str = "SLUICEGATE_TEST_SHORT_OF_DESCRIPTORS";
    if std::env::var_os(INNER).is_none() {
        let name = "listener::tests::socket::connections_wait_while_descriptors_are_short";
        let status = std::process::Command::new("sh")
            .args(["-c", r#"ulimit -n 64 && exec "$0" --exact "$1""#])
            .arg(std::env::current_exe().unwrap())
            .arg(name)
            .env(INNER, "1")
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    paused(async {
        let bench = Bench::echo();
        tokio::task::yield_now().await;
        let mut clients = Vec::new();
        while let Ok(client) = std::net::TcpStream::connect(bench.address) {
            clients.push(client);
        }
        secs(10).await;
        assert_eq!(count(&bench.counts.accepted), 0);
        let failures = count(&bench.counts.accept_failures);
        assert!((10..=100).contains(&failures), "{failures} in 10 s");

        let waiting = clients.split_off(clients.len() / 2);
        clients.clear();
        for client in waiting.into_iter().take(5) {
            client.set_nonblocking(true).unwrap();
            let mut client = TcpStream::from_std(client).unwrap();
            client.write_all(GET).await.unwrap();
            until(&mut client, "GET /x ").await;
        }
    });
}

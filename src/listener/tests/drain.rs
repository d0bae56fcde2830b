use super::*;

#[test]
fn a_drain_lets_idle_go_and_busy_finish() {
    paused(async {
        let hold = Hold::default();
        let service = hold.clone();
        let bench = Bench::new(settings(), move |_, request| {
            if request.uri().path() == "/held" { service.answer() } else { Box::pin(echo(request)) }
        });
        let mut folded = bench.connect().await;
        folded.write_all(GET).await.unwrap();
        until(&mut folded, "GET /x ").await;
        secs(1).await;
        let mut fresh = bench.connect().await;
        fresh.write_all(GET).await.unwrap();
        until(&mut fresh, "GET /x ").await;
        let mut busy = bench.connect().await;
        busy.write_all(b"GET /held HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        hold.held().await;

        let (mut send, connection) = h2::client::handshake(bench.connect().await).await.unwrap();
        let connection = start(connection);
        let request = Request::builder().uri("http://a/held").body(()).unwrap();
        let (answer, _) = send.send_request(request, true).unwrap();
        while hold.0.borrow().len() < 2 {
            hold.1.notified().await;
        }

        bench.drain.set(Phase::Draining);
        assert_eq!(rest(&mut folded).await, "");
        assert_eq!(rest(&mut fresh).await, "");
        secs(5).await;
        assert_eq!(bench.limit.open(), 2);
        assert!(TcpStream::connect(bench.address).await.is_err());
        assert!(!bench.served.is_finished());

        hold.release();
        let all = rest(&mut busy).await;
        assert!(all.contains("connection: close") && all.ends_with("held"), "{all}");
        assert_eq!(answer.await.unwrap().status(), 200);
        drop((busy, send));
        connection.await.unwrap().unwrap();
        bench.served.await.unwrap().unwrap();
        assert_eq!(bench.drain.tasks_left(), 0);
    });
}

#[test]
fn requests_in_the_backlog_and_on_idle_connections_are_still_answered() {
    paused(async {
        let bench = Bench::echo();
        let mut idle = bench.connect().await;
        idle.write_all(GET).await.unwrap();
        until(&mut idle, "GET /x ").await;
        secs(1).await;
        // Nothing of this is seen by the listener before the drain begins: it has had no turn.
        let waiting = std::net::TcpStream::connect(bench.address).unwrap();
        std::io::Write::write_all(&mut &waiting, GET).unwrap();
        bench.drain.set(Phase::Draining);
        waiting.set_nonblocking(true).unwrap();
        let mut waiting = TcpStream::from_std(waiting).unwrap();
        idle.write_all(GET).await.unwrap();
        for client in [&mut waiting, &mut idle] {
            let all = rest(client).await;
            assert!(all.contains("GET /x ") && all.contains("connection: close"), "{all}");
        }
        drop((waiting, idle));
        bench.served.await.unwrap().unwrap();
    });
}

#[test]
fn the_end_of_the_grace_drops_everything() {
    paused(async {
        let hold = Hold::default();
        let service = hold.clone();
        let bench = Bench::new(settings(), move |_, _| service.answer());
        let mut busy = bench.connect().await;
        busy.write_all(GET).await.unwrap();
        let (mut send, connection) = h2::client::handshake(bench.connect().await).await.unwrap();
        start(connection);
        let (answer, _) = send.send_request(Request::builder().uri("http://a/").body(()).unwrap(), true).unwrap();
        while hold.0.borrow().len() < 2 {
            hold.1.notified().await;
        }
        bench.drain.set(Phase::Draining);
        secs(1).await;
        bench.drain.set(Phase::Ending);
        bench.served.await.unwrap().unwrap();
        assert!(hold.0.borrow().iter().all(tokio::sync::oneshot::Sender::is_closed));
        assert_eq!(rest(&mut busy).await, "");
        assert!(answer.await.is_err());
        assert_eq!(bench.drain.tasks_left(), 0);
    });
}

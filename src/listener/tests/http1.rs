use http::StatusCode;
use http_body::Body as _;

use super::{super::connection::WARM, *};
use crate::error::Kind;

#[test]
fn pipelined_requests_are_answered_in_order() {
    paused(async {
        let bench = Bench::echo();
        let mut client = bench.connect().await;
        let wire = b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\nPOST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi\
            POST /3 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nyou\r\n0\r\n\r\n\
            GET /4 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        client.write_all(wire).await.unwrap();
        let all = rest(&mut client).await;
        let at = |part: &str| all.find(part).unwrap_or_else(|| panic!("{part} in {all}"));
        assert!(
            at("GET /1 ") < at("POST /2 hi") && at("POST /2 hi") < at("POST /3 you") && at("POST /3") < at("GET /4")
        );
        assert!(!all.to_ascii_lowercase().contains("\r\ndate:"));
    });
}

#[test]
fn a_thousand_idle_connections_fold_and_still_answer() {
    paused(async {
        let bench = Bench::echo();
        let mut clients = Vec::new();
        for _ in 0..1000 {
            let mut client = bench.connect().await;
            client.write_all(GET).await.unwrap();
            until(&mut client, "GET /x ").await;
            clients.push(client);
        }
        secs(1).await;
        assert_eq!(count(&bench.counts.folded), 1000);
        assert_eq!(bench.limit.open(), 1000);
        for client in &mut clients {
            client.write_all(GET).await.unwrap();
            until(client, "GET /x ").await;
        }
        secs(1).await;
        assert_eq!(count(&bench.counts.folded), 2000);
        drop(clients);
        secs(1).await;
        assert_eq!(bench.limit.open(), 0);
    });
}

#[test]
fn more_than_a_few_idle_connections_fold_at_once() {
    paused(async {
        let ticker = Ticker::default();
        let bench = Bench::timed(settings(), ticker.clone(), |_, request| Box::pin(echo(request)));
        let mut clients = Vec::new();
        for _ in 0..WARM + 100 {
            clients.push(bench.connect().await);
        }
        for client in &mut clients {
            client.write_all(GET).await.unwrap();
        }
        for client in &mut clients {
            until(client, "GET /x ").await;
        }
        assert_eq!(count(&bench.counts.folded), 100);
        ticker.tick();
        ticker.tick();
        secs(1).await;
        assert_eq!(count(&bench.counts.folded), (WARM + 100) as u64);
        // Its place is free again.
        clients[0].write_all(GET).await.unwrap();
        until(&mut clients[0], "GET /x ").await;
        secs(1).await;
        assert_eq!(count(&bench.counts.folded), (WARM + 100) as u64);
    });
}

#[test]
fn a_folded_connection_that_stays_idle_is_closed() {
    paused(async {
        let bench = Bench::echo();
        let mut client = bench.connect().await;
        client.write_all(GET).await.unwrap();
        until(&mut client, "GET /x ").await;
        secs(70).await;
        assert_eq!(bench.limit.open(), 1);
        secs(10).await;
        assert_eq!(bench.limit.open(), 0);
        assert_eq!(rest(&mut client).await, "");
    });
}

#[test]
fn nothing_is_folded_while_a_body_is_alive() {
    paused(async {
        let bench = Bench::echo();
        let mut client = bench.connect().await;
        client.write_all(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\n").await.unwrap();
        for part in ["a", "b", "c", "d", "e", "f"] {
            secs(5).await;
            client.write_all(part.as_bytes()).await.unwrap();
        }
        until(&mut client, "POST /x abcdef").await;
        assert_eq!(count(&bench.counts.folded), 0);
        secs(1).await;
        assert_eq!(count(&bench.counts.folded), 1);
    });
}

#[test]
fn an_upload_that_outlives_its_answer_is_not_mistaken_for_the_next_request() {
    paused(async {
        let kept = Rc::new(RefCell::new(Vec::new()));
        let keep = Rc::clone(&kept);
        let bench = Bench::new(settings(), move |_, request| {
            // Somebody reads on in the background, as a driver of an upstream connection does.
            let mut body = Body::upload(request.into_body());
            let keep = Rc::clone(&keep);
            start(async move {
                while let Some(Ok(frame)) = poll_fn(|cx| pin!(&mut body).poll_frame(cx)).await {
                    keep.borrow_mut().extend_from_slice(&frame.into_data().unwrap());
                }
            });
            Box::pin(async { Ok(Response::new(Body::whole("early"))) })
        });
        let mut client = bench.connect().await;
        client.write_all(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 28\r\n\r\n").await.unwrap();
        until(&mut client, "early").await;
        secs(5).await;
        assert_eq!(count(&bench.counts.folded), 0);
        client.write_all(GET).await.unwrap();
        secs(1).await;
        assert_eq!(*kept.borrow(), GET);
        assert_eq!(count(&bench.counts.folded), 1);
    });
}

#[test]
fn an_upload_comes_in_large_pieces() {
    paused(async {
        let pieces = Rc::new(RefCell::new(Vec::new()));
        let seen = Rc::clone(&pieces);
        let bench = Bench::new(settings(), move |_, request| {
            let mut body = Body::upload(request.into_body());
            let seen = Rc::clone(&seen);
            Box::pin(async move {
                while let Some(Ok(frame)) = poll_fn(|cx| pin!(&mut body).poll_frame(cx)).await {
                    seen.borrow_mut().push(frame.into_data().unwrap().len());
                }
                Ok(Response::new(Body::whole("read")))
            })
        });
        let mut client = bench.connect().await;
        client.write_all(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 65536\r\n\r\n").await.unwrap();
        client.write_all(&[b'x'; 65536]).await.unwrap();
        until(&mut client, "read").await;
        let pieces = pieces.borrow();
        assert_eq!(pieces.iter().sum::<usize>(), 65536);
        assert!(pieces.len() < 40, "{pieces:?}");
    });
}

#[test]
fn half_a_head_behind_an_answered_request_survives_the_fold() {
    paused(async {
        let bench = Bench::echo();
        let mut client = bench.connect().await;
        client.write_all(b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HT").await.unwrap();
        until(&mut client, "GET /1 ").await;
        secs(2).await;
        client.write_all(b"TP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        until(&mut client, "GET /2 ").await;
    });
}

#[test]
fn a_head_that_drips_is_cut_with_408() {
    paused(async {
        let bench = Bench::echo();
        let mut client = bench.connect().await;
        for byte in b"GET / HTTP/1" {
            client.write_all(&[*byte]).await.unwrap();
            secs(1).await;
        }
        let all = rest(&mut client).await;
        assert!(all.starts_with("HTTP/1.1 408 "), "{all}");
        assert_eq!(count(&bench.counts.late_heads), 1);

        // The same behind a first request, and in its very packet.
        for (early, late) in [("", "GET /"), ("GET", " /")] {
            let mut client = bench.connect().await;
            client.write_all(format!("GET /1 HTTP/1.1\r\nhost: a\r\n\r\n{early}").as_bytes()).await.unwrap();
            until(&mut client, "GET /1 ").await;
            client.write_all(late.as_bytes()).await.unwrap();
            secs(12).await;
            let all = rest(&mut client).await;
            assert!(all.starts_with("HTTP/1.1 408 "), "{all}");
        }
    });
}

#[test]
fn a_connection_without_a_byte_is_closed_without_a_word() {
    paused(async {
        let bench = Bench::echo();
        let mut client = bench.connect().await;
        assert_eq!(rest(&mut client).await, "");
        let mut client = bench.connect().await;
        client.write_all(b"PRI * HTTP/2").await.unwrap();
        assert_eq!(rest(&mut client).await, "");
    });
}

#[test]
fn an_upload_of_a_byte_a_minute_fails_with_a_timeout() {
    paused(async {
        let bench = Bench::echo();
        let mut client = bench.connect().await;
        client.write_all(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n").await.unwrap();
        let (mut reading, mut writing) = client.into_split();
        let drip = start(async move {
            while writing.write_all(b"x").await.is_ok() {
                secs(50).await;
            }
        });
        let mut all = Vec::new();
        while let Ok(1..) = reading.read_buf(&mut all).await {}
        assert!(String::from_utf8_lossy(&all).contains(&format!("{:?}", Kind::RequestTimeout)));
        drip.await.unwrap();
        assert_eq!(bench.limit.open(), 0);
    });
}

#[test]
fn a_client_that_reads_nothing_is_cut_and_one_that_reads_is_not() {
    paused(async {
        let bench = Bench::new(settings(), |_, _| Box::pin(async { Ok(Response::new(Body::stream(Endless))) }));
        let mut stalled = bench.connect().await;
        stalled.write_all(GET).await.unwrap();
        let mut slow = bench.connect().await;
        slow.write_all(GET).await.unwrap();
        let mut piece = vec![0; 256 * 1024];
        for _ in 0..30 {
            secs(5).await;
            slow.read_exact(&mut piece).await.unwrap();
        }
        assert_eq!(count(&bench.counts.stalled), 1);
        assert_eq!(bench.limit.open(), 1);
        assert_eq!(count(&bench.counts.folded), 0);
    });
}

#[test]
fn a_client_that_leaves_takes_its_request_with_it() {
    paused(async {
        let hold = Hold::default();
        let service = hold.clone();
        let bench = Bench::new(settings(), move |_, _| service.answer());
        let mut client = bench.connect().await;
        client.write_all(GET).await.unwrap();
        hold.held().await;
        drop(client);
        secs(1).await;
        assert!(hold.0.borrow()[0].is_closed(), "the call was dropped");
        assert_eq!(bench.limit.open(), 0);
    });
}

#[test]
fn a_panic_is_a_500_and_the_worker_lives() {
    paused(async {
        let bench = Bench::new(settings(), |_, request| {
            assert!(request.uri().path() != "/call", "in the call");
            Box::pin(async move {
                assert!(request.uri().path() != "/poll", "in the future");
                echo(request).await
            })
        });
        for path in ["/call", "/poll"] {
            let mut client = bench.connect().await;
            client.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
            let all = rest(&mut client).await;
            assert!(all.starts_with("HTTP/1.1 500 ") && all.contains("connection: close"), "{all}");
        }
        assert_eq!(count(&bench.counts.panics), 2);
        let mut client = bench.connect().await;
        client.write_all(GET).await.unwrap();
        until(&mut client, "GET /x ").await;
    });
}

#[test]
fn a_tunnel_gets_the_bytes_that_came_early() {
    paused(async {
        let bench = Bench::new(settings(), |peer, request| {
            if request.uri().path() != "/ws" {
                peer.tunnel(Box::new(|_, _| unreachable!("not switched")));
                return Box::pin(echo(request));
            }
            peer.tunnel(Box::new(|mut stream, early| {
                Box::pin(async move {
                    stream.write_all(&early).await.unwrap();
                    let mut more = [0; 4];
                    stream.read_exact(&mut more).await.unwrap();
                    stream.write_all(&more).await.unwrap();
                })
            }));
            Box::pin(async {
                let response = Response::builder()
                    .status(StatusCode::SWITCHING_PROTOCOLS)
                    .header("upgrade", "websocket")
                    .header("connection", "upgrade");
                Ok(response.body(Body::empty()).unwrap())
            })
        });
        let mut client = bench.connect().await;
        client.write_all(GET).await.unwrap();
        until(&mut client, "GET /x ").await;
        let wire = b"GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nearly";
        client.write_all(wire).await.unwrap();
        let head = until(&mut client, "early").await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        secs(100).await;
        client.write_all(b"late").await.unwrap();
        assert_eq!(rest(&mut client).await, "late");
        assert_eq!(bench.limit.open(), 0);
    });
}

#[test]
fn an_early_refusal_of_an_upload_reaches_the_client() {
    paused(async {
        let bench = Bench::new(settings(), |_, _| {
            Box::pin(async { Ok(Response::builder().status(413).body(Body::whole("no")).unwrap()) })
        });
        let client = bench.connect().await;
        let (mut reading, mut writing) = client.into_split();
        writing.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 8000000\r\n\r\n").await.unwrap();
        start(async move {
            let piece = vec![b'x'; 1_000_000];
            for _ in 0..8 {
                writing.write_all(&piece).await.unwrap();
            }
        })
        .await
        .unwrap();
        let mut all = Vec::new();
        while let Ok(1..) = reading.read_buf(&mut all).await {}
        assert!(all.starts_with(b"HTTP/1.1 413 "));
    });
}

#[test]
fn heads_are_bounded() {
    paused(async {
        let bench =
            Bench::new(Settings { header_bytes: 16 * 1024, ..settings() }, |_, request| Box::pin(echo(request)));
        let long = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(20_000));
        let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(101));
        let endless = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}", "y".repeat(BUFFER));
        for head in [long, many, endless] {
            let mut client = bench.connect().await;
            client.write_all(head.as_bytes()).await.unwrap();
            let all = rest(&mut client).await;
            assert!(all.starts_with("HTTP/1.1 431 "), "{all}");
        }
    });
}

#[test]
fn over_the_limit_is_503_and_room_comes_back() {
    paused(async {
        let bench = Bench::new(Settings { limit: Limit::new(1), ..settings() }, |_, request| Box::pin(echo(request)));
        let mut first = bench.connect().await;
        first.write_all(GET).await.unwrap();
        until(&mut first, "GET /x ").await;
        let mut second = bench.connect().await;
        second.write_all(GET).await.unwrap();
        let all = rest(&mut second).await;
        assert!(all.starts_with("HTTP/1.1 503 ") && all.contains("retry-after: 1"), "{all}");
        let (head, body) = all.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{all}");
        assert_eq!(count(&bench.counts.refused), 1);
        drop((first, second));
        secs(10).await;
        let mut third = bench.connect().await;
        third.write_all(GET).await.unwrap();
        until(&mut third, "GET /x ").await;
    });
}

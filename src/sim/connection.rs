//! One connection from its first byte to its last: HTTP/1.1 by [`Wire`], HTTP/2 when its preface comes.

use std::sync::Arc;

use tokio::net::TcpStream;

use super::{
    http2, server,
    server::Sink,
    state::{Connected, Order, Request, Shared},
    websocket,
    wire::{Framing, Head, Leave, NoRequest, Wire},
};

/// Serves requests until the connection ends.
pub(crate) async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    let _connected = Connected::new(&shared);
    let mut wire = Wire::new(stream, shared.config.engine);
    match requests(&shared, &mut wire).await {
        Ok(Next::Http2) => {
            let (stream, before) = wire.into_parts();
            http2::serve(shared, stream, before).await;
        }
        Ok(Next::End) | Err(Leave::Fin | Leave::Gone) => {}
        Err(Leave::Reset) => wire.reset(),
        Err(Leave::Die) => die(&shared).await,
    }
}

/// Asks the main task to kill everything, this connection too.
pub(crate) async fn die(shared: &Shared) {
    // A sim that is ending anyway.
    let _ = shared.orders.send(Order::Kill(None)).await;
    std::future::pending().await
}

enum Next {
    End,
    Http2,
}

async fn requests(shared: &Arc<Shared>, wire: &mut Wire) -> Result<Next, Leave> {
    let most = shared.config.requests_per_connection();
    for count in 1..=most {
        let request = match wire.request(shared.config.idle()).await {
            Ok(request) => request,
            Err(NoRequest::End) => return Ok(Next::End),
            Err(NoRequest::Http2) => return Ok(Next::Http2),
            Err(NoRequest::Bad(what)) => return refuse(wire, what).await,
        };
        wire.close |= count == most;
        if let Err(bad) = answer(shared, wire, request).await? {
            return match bad {
                NoRequest::Bad(what) => refuse(wire, what).await,
                NoRequest::End | NoRequest::Http2 => Err(Leave::Gone),
            };
        }
        if wire.close {
            break;
        }
        if wire.silent {
            wire.arrived(shared.config.idle()).await;
            break;
        }
    }
    Ok(Next::End)
}

/// Reads the body as far as its endpoint wants it read, and answers.
async fn answer(shared: &Arc<Shared>, wire: &mut Wire, request: Request) -> Result<Result<(), NoRequest>, Leave> {
    let framing = match Wire::framing(&request) {
        Ok(framing) => framing,
        Err(bad) => return Ok(Err(bad)),
    };
    shared.add(&shared.counters.requests, 1);
    if websocket::wanted(&request) {
        shared.saw(&Arc::new(request.clone()), false);
        websocket::serve(wire, &request).await?;
        return Ok(Ok(()));
    }
    if let Err(bad) = wire.go_on(&request).await {
        return Ok(Err(bad));
    }
    if request.path() == "/sim/echo" {
        return echo(wire, &request, framing).await;
    }
    let mut request = request;
    match wire.body(framing).await {
        Ok(body) => request.body = body,
        Err(bad) => return Ok(Err(bad)),
    }
    server::respond(shared, Arc::new(request), Sink::One(wire)).await?;
    Ok(Ok(()))
}

/// Sends the body back piece by piece as it comes.
async fn echo(wire: &mut Wire, request: &Request, framing: Framing) -> Result<Result<(), NoRequest>, Leave> {
    let content_type = if request.header("content-type") == Some("application/json") {
        "application/json"
    } else {
        "application/octet-stream"
    };
    let mut left = if let Framing::Length(length) = framing { Some(length) } else { None };
    wire.begin(&Head::new(200, content_type), Framing::Chunked).await?;
    loop {
        match wire.piece(left).await {
            Ok(Some(piece)) => {
                left = left.map(|left| left - piece.len() as u64);
                wire.data(&piece).await?;
            }
            Ok(None) => return Ok(Ok(wire.end(&[]).await?)),
            // The head is out: nothing can be said any more.
            Err(_) => return Err(Leave::Gone),
        }
    }
}

async fn refuse(wire: &mut Wire, what: &str) -> Result<Next, Leave> {
    wire.close = true;
    wire.whole(&Head::new(400, "text/plain; charset=utf-8"), what.as_bytes()).await?;
    Ok(Next::End)
}

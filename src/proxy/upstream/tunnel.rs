//! WebSocket: after the backend's 101 the two connections are joined byte for byte.

use std::{pin::Pin, rc::Rc};

use bytes::Bytes;
use http::{HeaderValue, header};
use tokio::io::{AsyncWriteExt, copy_bidirectional};

use crate::{
    fleet::Permit,
    proxy::{Response, call::Call, headers::strip_response},
    runtime::io::Duplex,
};

/// The 101; the listener hands the client's side over once it is sent.
pub(super) fn join(mut response: Response, backend: Box<dyn Duplex>, call: &Rc<Call>, permit: Permit) -> Response {
    let protocol = response.headers().get(header::UPGRADE).cloned();
    strip_response(response.headers_mut());
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(header::UPGRADE, protocol.unwrap_or(HeaderValue::from_static("websocket")));
    call.record.peer.tunnel(Box::new(move |client, early| Box::pin(relay(client, early, backend, permit))));
    response
}

/// Until both sides have ended. The permit goes with it: an open tunnel is a call in flight.
async fn relay(mut client: Box<dyn Duplex>, early: Bytes, mut backend: Box<dyn Duplex>, permit: Permit) {
    if backend.write_all(&early).await.is_ok() {
        // A reset on either side is how tunnels end: there is nobody left to tell.
        let _ended = copy_bidirectional(&mut Pin::new(&mut client), &mut Pin::new(&mut backend)).await;
    }
    drop(permit);
}

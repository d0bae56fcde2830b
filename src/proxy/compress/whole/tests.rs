//! Large bodies: in pieces, with turns between.

use std::task::Waker;

use super::*;

#[test]
fn each_piece_is_a_turn() {
    let body = Bytes::from(vec![b'x'; 2 * PIECE + 5]);
    let mut pieces = Pieces { rest: body, left: PIECE };
    let mut cx = Context::from_waker(Waker::noop());
    let mut seen = Vec::new();
    loop {
        match Pin::new(&mut pieces).poll_fill_buf(&mut cx) {
            Poll::Pending => seen.push(0),
            Poll::Ready(piece) => {
                let length = piece.unwrap().len();
                if length == 0 {
                    break;
                }
                seen.push(length);
                Pin::new(&mut pieces).consume(length);
            }
        }
    }
    assert_eq!(seen, [PIECE, 0, PIECE, 0, 5]);
}

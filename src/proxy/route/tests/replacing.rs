//! Streams that fail between their head and their first byte.

use super::*;

const SSE: &str = "text/event-stream";
const RESET: (Kind, Retry) = (Kind::UpstreamReset, Retry::Safe);

fn broken() -> Step {
    Step::Stream(SSE, vec![], Some(RESET))
}

fn sound() -> Step {
    Step::Stream(SSE, vec!["data: 1\n\n", "data: 2\n\n"], None)
}

async fn read(answer: Answer) -> Result<Bytes, Error> {
    answer.unwrap().into_body().read(1 << 20).await
}

#[tokio::test(start_paused = true)]
async fn another_try_takes_its_place_unseen() {
    let bench = Bench::new(&config([backend("a"), backend("b")]));
    bench.on("a", broken()).on("b", broken()).on("a", sound()).on("b", sound());
    let call = call();
    let record = Rc::clone(&call.record);
    assert_eq!(read(bench.send(call).await).await.unwrap(), "data: 1\n\ndata: 2\n\n");
    assert_eq!(record.attempts.get(), 3, "two broke");
    assert_eq!(bench.backend("a").load().in_flight() + bench.backend("b").load().in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn after_the_first_byte_nothing_is_replaced() {
    let bench = Bench::new(&config([backend("a"), backend("b")]));
    let cut = || Step::Stream(SSE, vec!["data: 1\n\n"], Some((Kind::StreamCut, Retry::Safe)));
    bench.on("a", cut()).on("b", cut());
    assert_eq!(read(bench.send(call()).await).await.unwrap_err().kind(), Kind::StreamCut);
    assert_eq!(bench.tried().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn another_kind_of_answer_does_not_fit() {
    for other in [Step::Status(200, "plain"), Step::Status(400, "no")] {
        let bench = Bench::new(&config([backend("a")]));
        bench.on("a", broken()).on("a", other);
        let error = read(bench.send(call()).await).await.unwrap_err();
        assert!(error.message().contains("cannot take its place"), "{}", error.message());
    }
}

#[tokio::test(start_paused = true)]
async fn the_error_passes_on_when_no_try_is_left() {
    let bench = Bench::new(&config([backend("a")]));
    bench.on("a", broken()).on("a", broken()).on("a", broken());
    let error = read(bench.send(call()).await).await.unwrap_err();
    assert_eq!((error.kind(), bench.tried().len()), (Kind::UpstreamReset, 3));
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_repeated_is_not_replaced() {
    let bench = Bench::new(&config([backend("a"), backend("b")]));
    bench.on("a", broken()).on("b", broken());
    let once = Call { repeatable: false, ..call() };
    assert!(read(bench.send(once).await).await.is_err());
    assert_eq!(bench.tried().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_payload_is_let_go_at_the_first_byte() {
    let bench = Bench::new(&config([backend("a")]));
    bench.on("a", sound());
    let call = call();
    let record = Rc::clone(&call.record);
    let mut body = bench.send(call).await.unwrap().into_body();
    let held = Rc::strong_count(&record);
    let first = std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut body), cx)).await;
    assert_eq!(first.unwrap().unwrap().into_data().unwrap(), "data: 1\n\n");
    assert!(Rc::strong_count(&record) < held);
}

#[tokio::test(start_paused = true)]
async fn whole_answers_are_handed_over_as_they_are() {
    let bench = Bench::new(&config([backend("a")]));
    assert!(bench.send(call()).await.unwrap().body().as_whole().is_some());
}

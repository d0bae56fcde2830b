use std::{cell::RefCell, rc::Rc};

use http::StatusCode;
use tokio::time::advance;

use super::*;

/// A service by script: what lies at each path, and what was asked.
#[derive(Clone, Default)]
struct Script(Rc<RefCell<Inner>>);

#[derive(Default)]
struct Inner {
    at: Vec<(String, Reply)>,
    asked: Vec<String>,
    tokens: u64,
    /// IMDSv2 is enforced.
    strict: bool,
    date: Option<&'static str>,
}

#[derive(Clone)]
enum Reply {
    Text(u16, String),
    Silence(Duration),
}

impl Script {
    fn put(&self, path: &str, status: u16, text: impl Into<String>) {
        self.set(path, Reply::Text(status, text.into()));
    }

    fn set(&self, path: &str, reply: Reply) {
        let at = &mut self.0.borrow_mut().at;
        at.retain(|(known, _)| known != path);
        at.push((path.to_owned(), reply));
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.0.borrow_mut().asked)
    }

    async fn answer(&self, request: Request) -> Result<Answer, Fault> {
        let path = request.path.split('?').next().unwrap().to_owned();
        let reply = {
            let mut inner = self.0.borrow_mut();
            inner.asked.push(format!("{} {path}", request.method));
            let token = request.headers.get("x-aws-ec2-metadata-token");
            let good = token.is_some_and(|token| token.to_str().unwrap() == format!("token-{}", inner.tokens));
            if inner.strict && request.method == Method::GET && !good {
                Reply::Text(401, String::new())
            } else if request.method == Method::PUT && inner.strict {
                assert!(request.headers.contains_key("x-aws-ec2-metadata-token-ttl-seconds"));
                inner.tokens += 1;
                Reply::Text(200, format!("token-{}", inner.tokens))
            } else {
                let found = inner.at.iter().find(|(known, _)| *known == path);
                found.map_or(Reply::Text(404, String::new()), |(_, reply)| reply.clone())
            }
        };
        match reply {
            Reply::Text(status, text) => {
                let mut headers = HeaderMap::new();
                if let Some(date) = self.0.borrow().date {
                    headers.insert(header::DATE, HeaderValue::from_static(date));
                }
                if request.method == Method::PUT {
                    headers.insert("x-aws-ec2-metadata-token-ttl-seconds", HeaderValue::from(60));
                }
                if request.path.starts_with("/computeMetadata") {
                    headers.insert("metadata-flavor", HeaderValue::from_static("Google"));
                }
                Ok(Answer { status: StatusCode::from_u16(status).unwrap(), headers, body: text.into() })
            }
            Reply::Silence(time) => {
                sleep(time).await;
                Err(Fault::Reset("closed".into()))
            }
        }
    }
}

const ACTION: &str = "/latest/meta-data/spot/instance-action";
const TARGET: &str = "/latest/meta-data/autoscaling/target-lifecycle-state";
const REBALANCE: &str = "/latest/meta-data/events/recommendations/rebalance";
const EVENTS: &str = "/metadata/scheduledevents";
const NAME: &str = "/metadata/instance/compute/name";

async fn look(source: &mut impl Source, script: &Script) -> Result<Look, String> {
    source.look(&async |request| script.answer(request).await).await
}

fn seconds(action: Action, seconds: u64) -> Result<Look, String> {
    Ok(Look::Notice(action, Some(Duration::from_secs(seconds))))
}

#[tokio::test(start_paused = true)]
async fn aws_tokens_are_taken_renewed_and_taken_anew_when_forgotten() {
    let script = Script::default();
    script.0.borrow_mut().strict = true;
    let mut aws = Aws::default();
    assert_eq!(look(&mut aws, &script).await, Ok(Look::Quiet));
    assert_eq!(script.asked()[..2], ["PUT /latest/api/token", "GET /latest/meta-data/spot/instance-action"]);
    look(&mut aws, &script).await.unwrap();
    assert_eq!(script.asked().len(), 3, "the same token");
    advance(Duration::from_secs(46)).await;
    look(&mut aws, &script).await.unwrap();
    assert_eq!(script.asked()[0], "PUT /latest/api/token", "before its end");
    script.0.borrow_mut().tokens += 1;
    assert_eq!(look(&mut aws, &script).await, Ok(Look::Quiet));
    assert_eq!(script.asked()[..3], [&*format!("GET {ACTION}"), "PUT /latest/api/token", &*format!("GET {ACTION}")]);
}

#[tokio::test(start_paused = true)]
async fn aws_is_asked_in_the_first_version_where_there_is_no_token() {
    let script = Script::default();
    let mut aws = Aws::default();
    look(&mut aws, &script).await.unwrap();
    look(&mut aws, &script).await.unwrap();
    let puts = script.asked().iter().filter(|asked| asked.starts_with("PUT")).count();
    assert_eq!(puts, 1, "not at every look");
    script.put(ACTION, 401, "");
    let reason = look(&mut aws, &script).await.unwrap_err();
    assert!(reason.contains("hop limit"), "{reason}");
    script.put(ACTION, 500, "");
    assert!(look(&mut aws, &script).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn aws_notices_are_read_by_the_clock_of_the_service() {
    let script = Script::default();
    script.0.borrow_mut().date = Some("Wed, 07 Jan 2026 01:01:57 GMT");
    let mut aws = Aws::default();
    script.put(REBALANCE, 200, r#"{"noticeTime":"2026-01-07T01:00:00Z"}"#);
    assert_eq!(look(&mut aws, &script).await, Ok(Look::Notice(Action::Rebalance, None)));
    script.put(TARGET, 200, "Terminated");
    assert_eq!(look(&mut aws, &script).await, Ok(Look::Notice(Action::Terminate, None)));
    script.put(ACTION, 200, r#"{"action":"stop","time":"2026-01-07T01:03:47Z"}"#);
    assert_eq!(look(&mut aws, &script).await, seconds(Action::Stop, 110));
    script.put(ACTION, 200, r#"{"action":"terminate","time":"2036-01-07T01:03:47Z"}"#);
    assert_eq!(look(&mut aws, &script).await, seconds(Action::Terminate, 120), "there is no longer notice");
    script.put(ACTION, 200, r#"{"action":"terminate","time":"2026-01-07T01:01:00Z"}"#);
    assert_eq!(look(&mut aws, &script).await, seconds(Action::Terminate, 0));
    script.put(ACTION, 200, r#"{"action":"hibernate","time":"2026-01-07T01:03:47Z"}"#);
    assert_eq!(look(&mut aws, &script).await, seconds(Action::Hibernate, 0));
    script.put(ACTION, 200, "?");
    assert_eq!(look(&mut aws, &script).await, Ok(Look::Notice(Action::Terminate, None)), "that it is there says it");
}

#[tokio::test(start_paused = true)]
async fn azure_hears_of_its_own_machine_only() {
    let script = Script::default();
    script.0.borrow_mut().date = Some("Mon, 19 Sep 2016 18:29:17 GMT");
    script.put(NAME, 200, "vmss_1");
    let event = |kind: &str, who: &str, when: &str| {
        format!(
            r#"{{"EventId":"e","EventType":"{kind}","ResourceType":"VirtualMachine","Resources":["{who}"],
            "EventStatus":"Scheduled","NotBefore":"{when}","DurationInSeconds":-1}}"#
        )
    };
    let events = |all: &[String]| format!(r#"{{"DocumentIncarnation":3,"Events":[{}]}}"#, all.join(","));
    let mut azure = Azure::default();
    let (soon, later) = ("Mon, 19 Sep 2016 18:29:47 GMT", "Mon, 19 Sep 2016 18:34:47 GMT");
    for (all, wanted) in [
        (vec![], Ok(Look::Quiet)),
        (vec![event("Preempt", "vmss_0", soon)], Ok(Look::Quiet)),
        (vec![event("Freeze", "vmss_1", soon)], Ok(Look::Quiet)),
        (vec![event("Preempt", "VMSS_1", soon)], seconds(Action::Terminate, 30)),
        (vec![event("Terminate", "vmss_1", later), event("Redeploy", "vmss_1", soon)], seconds(Action::Stop, 30)),
        (vec![event("Preempt", "vmss_1", "")], seconds(Action::Terminate, 0)),
        (vec![event("Terminate", "vmss_1", "Mon, 19 Sep 2022 18:29:47 GMT")], seconds(Action::Terminate, 900)),
    ] {
        script.put(EVENTS, 200, events(&all));
        assert_eq!(look(&mut azure, &script).await, wanted, "{all:?}");
    }
    assert!(script.asked().iter().all(|asked| asked.starts_with("GET")), "nothing is acknowledged");
}

#[tokio::test(start_paused = true)]
async fn azures_first_answer_may_take_two_minutes_and_later_ones_may_not() {
    let script = Script::default();
    script.put(NAME, 200, "vm");
    script.set(EVENTS, Reply::Silence(Duration::from_secs(120)));
    let mut azure = Azure::default();
    let start = Instant::now();
    assert!(look(&mut azure, &script).await.unwrap_err().contains("closed"));
    assert_eq!(start.elapsed().as_secs(), 120, "waited for");
    script.put(EVENTS, 200, r#"{"DocumentIncarnation":1,"Events":[]}"#);
    assert_eq!(look(&mut azure, &script).await, Ok(Look::Quiet));
    script.set(EVENTS, Reply::Silence(Duration::from_secs(120)));
    let start = Instant::now();
    assert!(look(&mut azure, &script).await.unwrap_err().contains("no answer"));
    assert_eq!(start.elapsed(), PROMPT);
}

#[tokio::test(start_paused = true)]
async fn gcp_says_true_or_false() {
    let script = Script::default();
    let preempted = "/computeMetadata/v1/instance/preempted";
    let mut gcp = Gcp::default();
    script.put(preempted, 200, "FALSE");
    assert_eq!(look(&mut gcp, &script).await, Ok(Look::Quiet));
    script.put(preempted, 200, "TRUE\n");
    assert_eq!(look(&mut gcp, &script).await, seconds(Action::Terminate, 30));
    for (status, text) in [(403, ""), (200, "perhaps")] {
        script.put(preempted, status, text);
        assert!(look(&mut gcp, &script).await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_cloud_is_found_within_two_seconds_or_not_at_all() {
    let paths = [
        ("/latest/api/token", "secret", Some(InterruptionSource::Aws)),
        ("/latest/meta-data/", "ami-id\ninstance-id\n", Some(InterruptionSource::Aws)),
        ("/computeMetadata/v1/instance/id", "123", Some(InterruptionSource::Gcp)),
        ("/metadata/instance/compute/vmId", "02aab8a4-74ef-476e-8182-f6d2ba4166a6", Some(InterruptionSource::Azure)),
        ("/index.html", "hello", None),
    ];
    for (path, text, wanted) in paths {
        let script = Script::default();
        script.put(path, 200, text);
        assert_eq!(detect(&async |request| script.answer(request).await).await, wanted, "{path}");
    }
    let start = Instant::now();
    let silent = async |_: Request| std::future::pending().await;
    assert_eq!(detect(&silent).await, None);
    assert_eq!(start.elapsed(), DETECT);
}

#[tokio::test(start_paused = true)]
async fn what_is_known_changes_for_news_only() {
    let now = Instant::now();
    let notice = |action, left: u64| Look::Notice(action, Some(Duration::from_secs(left)));
    let mut known = Known::default();
    assert!(!known.hear::<Aws>(now, Look::Quiet));
    assert!(known.hear::<Aws>(now, Look::Notice(Action::Rebalance, None)));
    assert!(!known.hear::<Aws>(now, Look::Notice(Action::Rebalance, None)));
    assert!(known.hear::<Aws>(now, notice(Action::Terminate, 100)));
    // A mock tells the same distance at each look.
    for later in 1..50 {
        assert!(!known.hear::<Aws>(now + Duration::from_secs(later), notice(Action::Terminate, 100)));
    }
    assert_eq!(known.notice.as_ref().unwrap().at, Some(now + Duration::from_secs(100)));
    assert!(known.hear::<Aws>(now, notice(Action::Terminate, 50)), "sooner");
    assert!(!known.hear::<Aws>(now, Look::Quiet) && !known.hear::<Aws>(now, Look::Notice(Action::Rebalance, None)));
    assert!(known.hear::<Aws>(now, Look::Notice(Action::Rebalance, None)), "taken back to the hint");

    let mut known = Known::default();
    assert!(known.hear::<Azure>(now, notice(Action::Terminate, 100)));
    assert!(known.hear::<Azure>(now, notice(Action::Terminate, 200)), "it was put off");
    assert!(known.hear::<Azure>(now, Look::Quiet), "it is no longer there");
    assert_eq!(known.notice, None);
}

#[tokio::test(start_paused = true)]
async fn a_look_that_fails_changes_nothing() {
    let script = Script::default();
    let preempted = "/computeMetadata/v1/instance/preempted";
    script.put(preempted, 200, "TRUE");
    let sender = watch::Sender::new(None);
    let mut known = sender.subscribe();
    let fetch = async |request| script.answer(request).await;
    let steps = async {
        assert!(known.wait_for(Option::is_some).await.is_ok());
        known.mark_unchanged();
        script.put(preempted, 503, "");
        sleep(Duration::from_secs(60)).await;
        assert!(!known.has_changed().unwrap());
        script.put(preempted, 200, "FALSE");
        assert!(known.wait_for(Option::is_none).await.is_ok());
    };
    tokio::select! {
        () = watch(InterruptionSource::Auto, None, &fetch, &sender) => {}
        () = async { script.put("/computeMetadata/v1/instance/id", 200, "1"); steps.await } => {}
    }
}

fn known() -> Notice {
    Notice { action: Action::Terminate, at: Some(Instant::now() + Duration::from_secs(30)), source: "aws".into() }
}

#[tokio::test(start_paused = true)]
async fn a_gateway_is_told_until_it_hears_and_once_in_a_while_again() {
    let whom = Herald {
        gateway: "http://gateway:9090".into(),
        backend: "spot-a".into(),
        token: Some(HeaderValue::from_static("Bearer t")),
    };
    let posts: RefCell<Vec<(Instant, String)>> = RefCell::default();
    let down = std::cell::Cell::new(true);
    let fetch = async |request: Request| {
        assert_eq!((&request.method, &*request.path), (&Method::POST, "/api/v1/backends/spot-a/interruption"));
        assert_eq!(request.headers["authorization"], "Bearer t");
        assert!(request.headers.contains_key("date"));
        posts.borrow_mut().push((Instant::now(), String::from_utf8(request.body.to_vec()).unwrap()));
        if down.get() {
            return Err(Fault::Unreachable("refused".into()));
        }
        Ok(Answer { status: StatusCode::OK, headers: HeaderMap::new(), body: Bytes::new() })
    };
    let (sender, receiver) = watch::channel(None);
    let heard = watch::Sender::new(None);
    let mut told = heard.subscribe();
    let steps = async {
        sleep(Duration::from_secs(100)).await;
        assert!(posts.borrow().is_empty(), "there is nothing to say");
        let notice = Some(known());
        sender.send_replace(notice.clone());
        sleep(Duration::from_secs(20)).await;
        let tries = std::mem::take(&mut *posts.borrow_mut());
        assert!((9..40).contains(&tries.len()), "{}", tries.len());
        assert!(tries[1].0 - tries[0].0 < Duration::from_millis(200), "at once");
        assert!(tries[0].1.starts_with(r#"{"action":"terminate","time":"20"#), "{}", tries[0].1);
        down.set(false);
        assert!(told.wait_for(|told| *told == notice).await.is_ok());
        posts.borrow_mut().clear();
        sleep(Duration::from_secs(61)).await;
        assert_eq!(posts.borrow().len(), 4, "it may have been started again");
        posts.borrow_mut().clear();
        sender.send_replace(None);
        assert!(told.wait_for(Option::is_none).await.is_ok());
        assert_eq!(posts.borrow()[0].1, r#"{"action":"none"}"#);
    };
    tokio::select! {
        () = herald(&whom, &fetch, receiver, &heard) => {}
        () = steps => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_refuses_says_why() {
    let whom = Herald { gateway: "http://gateway:9090".into(), backend: "spot-a".into(), token: None };
    for (status, part) in [(401, "interruption_token"), (404, "no backend of this name"), (500, "500")] {
        let fetch = async |_: Request| {
            let status = StatusCode::from_u16(status).unwrap();
            Ok(Answer { status, headers: HeaderMap::new(), body: Bytes::new() })
        };
        let reason = whom.say(&fetch, None).await.unwrap_err();
        assert!(reason.contains(part), "{reason}");
    }
}

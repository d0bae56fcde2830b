use http::{HeaderMap, StatusCode};

use super::*;
use crate::fleet::testing::{backend, config};

fn engines() -> Engines {
    Engines {
        detect: |_, body| body.starts_with(b"vllm").then_some(Engine::Vllm),
        detect_by_info: |_| None,
        health_path: |_| "/health",
        models: |body| Some(str::from_utf8(body).ok()?.split_whitespace().skip(1).map(Into::into).collect()),
        waiting: |_| None,
    }
}

async fn probe(ask: Ask) -> Result<Answer, Fault> {
    let (status, body) = match (&*ask.backend.name, &*ask.path) {
        ("gone", _) => return Err(Fault::Unreachable("connection refused".into())),
        ("hung", _) => std::future::pending().await,
        ("loading", _) => (503, "Loading model"),
        ("dead", "/health") => (503, ""),
        (_, "/v1/models") => (200, "vllm m n"),
        _ => (200, ""),
    };
    let status = StatusCode::from_u16(status).unwrap();
    Ok(Answer { status, headers: HeaderMap::new(), body: body.into() })
}

#[tokio::test(start_paused = true)]
async fn every_backend_is_told_of_with_its_models_or_the_reason() {
    let listed = Backend { models: Models::List(vec!["m".into(), "x".into()]), ..backend("listed") };
    let config = config(["well", "gone", "hung", "loading", "dead"].map(backend).into_iter().chain([listed]));
    let start = tokio::time::Instant::now();
    let findings = check(&config, &engines(), &probe).await;
    assert_eq!(start.elapsed(), config.health.timeout, "all at once");
    let told: Vec<_> = findings
        .iter()
        .map(|finding| match &finding.found {
            Ok(found) => format!("{}: {:?} {:?} -{:?}", finding.backend, found.engine, found.models, found.missing),
            Err(problem) => format!("{}: {problem}", finding.backend),
        })
        .collect();
    assert_eq!(
        told,
        [
            "well: Some(Vllm) Some([\"m\", \"n\"]) -[]",
            "gone: cannot be reached: connection refused",
            "hung: cannot be reached: no answer within 5s",
            "loading: answers, and is not ready: loading model",
            "dead: answers, and is not ready: /health answered 503 Service Unavailable",
            "listed: Some(Vllm) Some([\"m\", \"n\"]) -[\"x\"]",
        ]
    );
}

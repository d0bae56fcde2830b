//! Endpoints that the gateway answers itself: the merged model list.
//!
//! Takes a [`Call`]; answers `/v1/models` and `/v1/models/{id}` from what the fleet knows, passes all others on. While
//! no list is known yet, a backend is asked as for any other path.

use std::{collections::BTreeMap, rc::Rc, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, header::CONTENT_TYPE};
use tower::{Service, service_fn};

use super::{Response, call::Call};
use crate::{
    body::Body,
    error::Error,
    fleet::Fleet,
    protocol::{
        endpoint::{self, Endpoint},
        engine,
    },
};

/// What the stage needs.
#[derive(Debug)]
pub struct Local {
    pub fleet: Arc<Fleet>,
    /// alias → model
    pub aliases: Vec<(Arc<str>, Arc<str>)>,
}

/// The stage.
pub fn local<S>(
    stage: Rc<Local>,
    inner: S,
) -> impl Service<Call, Response = Response, Error = Error, Future = impl Future<Output = Result<Response, Error>>> + Clone
where
    S: Service<Call, Response = Response, Error = Error> + Clone,
{
    service_fn(move |call: Call| {
        let (stage, mut inner) = (Rc::clone(&stage), inner.clone());
        async move {
            match call.endpoint {
                Endpoint::Models | Endpoint::Model => match stage.answer(Box::new(call)) {
                    Ok(answer) => Ok(answer),
                    Err(call) => inner.call(*call).await,
                },
                _ => inner.call(call).await,
            }
        }
    })
}

impl Local {
    /// The answer, or the call back: an id that is on no list is looked for as any unknown model is.
    fn answer(&self, mut call: Box<Call>) -> Result<Response, Box<Call>> {
        let models = self.models();
        if call.endpoint == Endpoint::Models && !models.is_empty() {
            return Ok(listed(&models));
        }
        let Some(id) = endpoint::model_id(call.path.path()) else { return Err(call) };
        match models.get(&*id) {
            Some(model) => Ok(json_answer(model.clone())),
            None => {
                call.model = Some(id.as_ref().into());
                Err(call)
            }
        }
    }

    /// Every model by id, as the first backend that has it describes it; aliases beside them.
    fn models(&self) -> BTreeMap<String, Bytes> {
        let mut models = BTreeMap::new();
        for backend in &self.fleet.snapshot().backends {
            let answer = backend.model_list().unwrap_or_default();
            let listed = engine::parse_models(&answer).unwrap_or_default();
            let known = backend.models();
            for model in listed.iter().filter(|model| known.may_serve(&model.id)) {
                models.entry(model.id.to_string()).or_insert_with(|| answer.slice_ref(model.raw));
            }
            for name in known.names() {
                models.entry(name.to_string()).or_insert_with(|| described(name));
            }
        }
        for (alias, model) in &self.aliases {
            if let Some(description) = models.get(&**model)
                && let Some(renamed) = renamed(description, alias)
            {
                models.entry(alias.to_string()).or_insert(renamed);
            }
        }
        models
    }
}

/// What is said of a model that no engine described.
fn described(id: &str) -> Bytes {
    serde_json::json!({"id": id, "object": "model", "created": 0, "owned_by": "sluicegate"}).to_string().into()
}

/// The same description under another id.
fn renamed(description: &[u8], id: &str) -> Option<Bytes> {
    let mut object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(description).ok()?;
    object.insert("id".to_owned(), id.into());
    Some(serde_json::to_vec(&object).ok()?.into())
}

fn listed(models: &BTreeMap<String, Bytes>) -> Response {
    let mut body = br#"{"object":"list","data":["#.to_vec();
    for (index, model) in models.values().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(model);
    }
    body.extend_from_slice(b"]}");
    json_answer(body)
}

fn json_answer(body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Body::whole(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

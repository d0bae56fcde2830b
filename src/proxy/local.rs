//! Endpoints that the gateway answers itself: the merged model list.
//!
//! Takes a [`Call`]; answers `/v1/models` and `/v1/models/{id}` from what the fleet knows, passes all others on. While
//! no list is known yet, a backend is asked as for any other path.

use std::{collections::BTreeMap, rc::Rc, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, header::CONTENT_TYPE};
use tower::{Service, service_fn};

use super::{Response, call::Call};
use crate::{
    body::Body,
    error::{Error, Kind},
    fleet::Fleet,
    protocol::endpoint::{self, Endpoint},
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
            match stage.answer(&call) {
                Some(answer) => answer,
                None => inner.call(call).await,
            }
        }
    })
}

impl Local {
    fn answer(&self, call: &Call) -> Option<Result<Response, Error>> {
        match call.endpoint {
            Endpoint::Models | Endpoint::Model => {}
            _ => return None,
        }
        if call.method != Method::GET && call.method != Method::HEAD {
            return Some(Err(Error::new(Kind::MethodNotAllowed, format!("{} is read with GET", call.path.path()))));
        }
        let models = self.models();
        if models.is_empty() {
            return None;
        }
        if call.endpoint == Endpoint::Models {
            return Some(Ok(listed(&models)));
        }
        let id = endpoint::model_id(call.path.path())?;
        match models.get(&*id) {
            Some(model) => Some(Ok(json_answer(model.clone()))),
            None if self.fleet.snapshot().known() => Some(Err(not_found(&id, models.keys()))),
            None => None,
        }
    }

    /// Every model by id, as the first backend that has it describes it; aliases beside them.
    fn models(&self) -> BTreeMap<String, Bytes> {
        let mut models = BTreeMap::new();
        for backend in &self.fleet.snapshot().backends {
            for model in backend.models().names() {
                models.entry(model.to_string()).or_insert_with(|| described(model));
            }
        }
        for (alias, model) in &self.aliases {
            if let Some(description) = models.get(&**model) {
                if let Some(renamed) = renamed(description, alias) {
                    models.entry(alias.to_string()).or_insert(renamed);
                }
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

/// The error for a model that nobody serves, naming those that exist.
pub fn not_found<'a>(id: &str, exist: impl Iterator<Item = &'a String>) -> Error {
    let names: Vec<_> = exist.take(20).map(|name| format!("`{name}`")).collect();
    Error::new(Kind::ModelNotFound, format!("no backend serves the model `{id}`; these exist: {}", names.join(", ")))
        .param("model")
}

//! An [`Attempt`]: one try of a call at one backend.

use std::{rc::Rc, sync::Arc};

use super::call::Call;
use crate::{
    body::Body,
    fleet::{Backend, Permit},
};

/// Made by `route`, consumed by `upstream`.
#[derive(Debug)]
pub struct Attempt {
    pub call: Rc<Call>,
    pub backend: Arc<Backend>,
    /// Counts against the backend until the answer's body ends.
    pub permit: Permit,
    pub body: Body,
    /// 1 for the first try.
    pub number: u32,
}

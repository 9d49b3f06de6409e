//! Signals and cancellation requests from outside. (W-B)
use perdure_proto::{Error, perdure::node::v1::*};
use crate::{api::Env, chain::{Answered, Chain}};
impl Chain {
    pub(crate) fn signal(&mut self, _c: SignalWorkflow, _env: &mut Env) -> Answered { Err(Error::unimplemented("signal")) }
    pub(crate) fn request_cancel(&mut self, _c: RequestCancelWorkflow, _env: &mut Env) -> Answered { Err(Error::unimplemented("cancel")) }
}

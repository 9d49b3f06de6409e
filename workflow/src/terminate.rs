//! Termination. (W-B)
use perdure_proto::{Error, perdure::node::v1::*};
use crate::{api::Env, chain::{Answered, Chain}};
impl Chain {
    pub(crate) fn terminate(&mut self, _c: TerminateWorkflow, _env: &mut Env) -> Answered { Err(Error::unimplemented("terminate")) }
}

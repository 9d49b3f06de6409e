//! ExecuteMultiOperation: update-with-start. (W-C)
use perdure_proto::{Error, temporal::api::workflowservice::v1::*};
use crate::{api::Env, chain::{Answered, Chain}};
impl Chain {
    pub(crate) fn multi_operation(&mut self, _c: ExecuteMultiOperationRequest, _env: &mut Env) -> Answered { Err(Error::unimplemented("ExecuteMultiOperation")) }
}

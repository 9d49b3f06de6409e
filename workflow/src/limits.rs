//! Limits of a run as a whole. (W-B)
use crate::{api::Env, run::Run};
impl Run {
    /// Terminates a run that has outgrown its history limits.
    pub(crate) fn enforce_history_limits(&mut self, _env: &mut Env) {}
}

//! Everything that happens because time passes, and everything outstanding. (W-A)
use perdure_types::Timestamp;
use crate::{api::{Effect, Env}, run::Run};
impl Run {
    /// Fires everything due at `env.now`.
    pub(crate) fn on_timer(&mut self, _env: &mut Env) {}
    /// Earliest time at which on_timer does something (volatile things included).
    pub(crate) fn next_timer(&self) -> Option<Timestamp> { None }
    /// Durable wake-up: earliest timer, or the scheduled time of outstanding offers and calls, or retention of a closed run.
    pub(crate) fn wake_at(&self) -> Option<Timestamp> { None }
    /// All outstanding effects: offers of scheduled tasks that are due, calls without result.
    pub(crate) fn resume(&self) -> Vec<Effect> { Vec::new() }
    pub(crate) fn weight_bytes(&self) -> usize { 1024 }
}

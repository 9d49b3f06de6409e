//! Schedules: start a workflow at the times that a specification names. Pure, as the core of workflows is.
//!
//! A schedule is an entity of its own ([`Schedule`]). Starting a workflow is a call to another entity, as with a child, and
//! the workflow tells the schedule how it ended: nothing polls. What is due follows from state, so a crash loses no action.
//!
//! Invariant (SC-1): every time that the specification names is accounted for: acted upon, or counted as skipped, missed
//! or dropped; or the schedule was paused, or out of actions.

mod act;
mod calls;
mod client;
mod describe;
mod overlap;
mod schedule;
pub mod spec;

pub use schedule::Schedule;

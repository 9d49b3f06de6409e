//! Worker deployments: which versions of workers there are, and which one gets what work. Pure, as the core of workflows is.
//!
//! Two kinds of entities. A [`Deployment`] knows its versions and decides where work goes. A [`TaskQueue`] holds what a
//! queue must know to follow that decision, and what operators have set for it: limits, and the sets and rules of build ids
//! that deployments have replaced. The queue's home reads it from there.
//! Each change of a deployment goes to the queues of its versions as a call, repeated until it has arrived; callers who
//! make such a change are answered when it has.

mod deployment;
mod describe;
mod drainage;
mod register;
mod routing;
mod rules;
mod sync;
mod task_queue;
mod version;
mod version_sets;

pub use deployment::Deployment;
pub use task_queue::TaskQueue;

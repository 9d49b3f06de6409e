//! Decides and applies the transitions of workflow executions. Pure: time, ids and limits come in as values
//! ([`Env`]), effects go out as values ([`Effect`]).
//!
//! The entity is the [`Chain`]: all runs of one workflow id. A driver feeds it commands, timers and results of calls,
//! and gets [`Handled`]: the record to make durable, the effects to carry out after that, and the answer. Replaying the
//! records ([`Chain::apply`]) gives the same state as the live path did (WF-1).
//!
//! Not here: storage, task queues, long polls, paging of histories.

mod activity;
mod activity_attempts;
mod activity_operations;
mod activity_options;
mod activity_respond;
mod activity_retry;
mod activity_timeout;
mod activity_validation;
mod api;
mod begin;
mod build_id;
mod callback;
mod callbacks;
mod chain;
mod child;
mod child_closing;
mod child_command;
mod close;
mod command;
mod commands;
mod completion;
mod continuation;
mod cron;
mod delete;
mod describe;
mod entity;
mod events;
mod executions;
mod external;
mod external_calls;
mod limits;
mod links;
mod multi_operation;
mod nexus;
mod nexus_cancel;
mod nexus_command;
mod nexus_describe;
mod nexus_failure;
mod nexus_operation;
mod options;
mod pause;
mod priority;
mod properties;
mod query;
mod reapply;
mod rebuild;
mod reset;
mod reset_points;
mod rules;
mod run;
mod signal;
mod start;
mod start_request;
mod terminate;
mod timeouts;
mod timer;
mod tracked;
mod update;
mod update_callbacks;
mod update_messages;
mod versioning;
mod workflow_task;
mod workflow_task_failure;

/// What the attempts of all activities have in common, also of those that no workflow has scheduled.
pub mod attempts {
    pub use crate::{
        activity::delivery,
        activity_attempts::bounded,
        activity_options::merge,
        activity_retry::{backoff, check_duration, is_retryable, requested_delay, timeout_failure, timeout_name},
        activity_timeout::deadline,
        activity_validation::validate_and_complete,
    };
}

/// What all Nexus operations have in common, also those that no workflow has scheduled.
pub mod nexus_operations {
    pub use crate::{
        nexus_failure::{is_canceled, timed_out},
        nexus_operation::{CancelOutcome, Operation, StartOutcome, common_links},
    };
}

pub use api::*;
pub use callback::Callbacks;
pub use chain::{ApplyError, Chain, RunView};
pub use entity::{Change, Entity, Single, SingleEntity, foreign_command};
pub use executions::{Execution, Executions, Step};
pub use run::Run;
pub use versioning::keyword_value;

//! One file for each RPC, or for a tight family of them: validate, resolve the namespace, call the owner, translate.

pub(crate) mod activity;
pub(crate) mod activity_by_id;
pub(crate) mod activity_by_token;
pub(crate) mod cancel;
pub(crate) mod describe;
pub(crate) mod history;
pub(crate) mod multi_operation;
pub(crate) mod namespace_read;
pub(crate) mod namespace_write;
pub(crate) mod poll;
pub(crate) mod query;
pub(crate) mod query_task;
pub(crate) mod search_attributes;
pub(crate) mod signal;
pub(crate) mod signal_with_start;
pub(crate) mod start;
pub(crate) mod sticky;
pub(crate) mod system;
pub(crate) mod task_queue;
pub(crate) mod terminate;
pub(crate) mod update;
pub(crate) mod worker;
pub(crate) mod workflow_task;

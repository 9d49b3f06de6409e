//! Priorities of activities and children: what they may be, and what they inherit.

use perdure_proto::temporal::api::common::v1::Priority;

const FAIRNESS_KEY_MAX_BYTES: usize = 64;

pub(crate) fn check(priority: Option<&Priority>) -> Result<(), &'static str> {
    let Some(priority) = priority else { return Ok(()) };
    if priority.priority_key < 0 {
        Err("priority key can't be negative")
    } else if priority.fairness_key.len() > FAIRNESS_KEY_MAX_BYTES {
        Err("fairness key length exceeds limit")
    } else if priority.fairness_weight < 0.0 {
        Err("must be greater than zero")
    } else {
        Ok(())
    }
}

/// A task's or child's own priority over that of its workflow, field by field.
pub(crate) fn merged(base: Option<&Priority>, own: Option<&Priority>) -> Option<Priority> {
    let (Some(base), Some(own)) = (base, own) else {
        return own.or(base).cloned();
    };
    Some(Priority {
        priority_key: if own.priority_key != 0 { own.priority_key } else { base.priority_key },
        fairness_key: if own.fairness_key.is_empty() { base.fairness_key.clone() } else { own.fairness_key.clone() },
        fairness_weight: if own.fairness_weight != 0.0 { own.fairness_weight } else { base.fairness_weight },
    })
}

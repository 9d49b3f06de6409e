//! What must hold, as predicates that models and simulation share.

/// What is known now continues what was promised before: nothing of it is gone or changed (A4, A5, C2).
pub fn continues<T: PartialEq>(promised: &[T], now: &[T]) -> bool {
    now.starts_with(promised)
}

/// Two views of the same thing, taken at different times: the shorter is the beginning of the longer.
pub fn agree<T: PartialEq>(one: &[T], other: &[T]) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

/// Ids count up from one without a gap (WF-2).
pub fn contiguous_from_one(ids: impl IntoIterator<Item = i64>) -> bool {
    ids.into_iter().zip(1..).all(|(id, expected)| id == expected)
}

/// Nothing beyond a session's end was acknowledged (F3).
pub fn acknowledged_below_end(acknowledged: u64, end: u64) -> bool {
    acknowledged <= end
}

//! ORDER BY: keys by which rows are sorted when not in the list's own order.

use std::{cmp::Ordering, sync::Arc};

use crate::{attributes::Attribute, row::Row, syntax::Direction, value::Value};

/// Where a row stands in a sorted list. The run id settles ties.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SortKey {
    pub values: Vec<Value>,
    pub run_id: Arc<str>,
}

impl SortKey {
    pub fn of(row: &Row, run_id: &Arc<str>, order: &[(Attribute, Direction)]) -> Self {
        let values = order.iter().map(|(attribute, _)| match row.value(attribute) {
            Value::Many(values) => values.into_iter().next().unwrap_or(Value::Null),
            one => one,
        });
        Self { values: values.collect(), run_id: run_id.clone() }
    }

    /// Missing values come last, whatever the direction.
    pub fn compare(&self, other: &Self, order: &[(Attribute, Direction)]) -> Ordering {
        for ((a, b), (_, direction)) in self.values.iter().zip(&other.values).zip(order) {
            let ordering = match (a, b) {
                (Value::Null, Value::Null) => Ordering::Equal,
                (Value::Null, _) => Ordering::Greater,
                (_, Value::Null) => Ordering::Less,
                _ => {
                    let ordering = a.compare(b).unwrap_or(Ordering::Equal);
                    if *direction == Direction::Descending { ordering.reverse() } else { ordering }
                }
            };
            if ordering.is_ne() {
                return ordering;
            }
        }
        self.run_id.cmp(&other.run_id)
    }
}

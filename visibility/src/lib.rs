//! Lists and counts of runs: the filter language, its evaluation over rows, the choice of an index, pages.
//!
//! A query text is parsed ([`syntax`]), its names and values are checked against the attributes of the namespace
//! ([`query`]), an index is chosen that gives a superset of the answer in list order ([`plan`]), and what it gives is
//! filtered, row by row ([`list`], [`count`]). Rows come through one port, [`Rows`]; the rest is pure.
//!
//! Invariants: (VI-1) a plan never leaves out a row that the filter admits. (VI-2) A run that is in the list all the
//! while is on exactly one of its pages, whatever is written between them.

mod attributes;
mod count;
mod duration;
mod list;
mod order;
mod plan;
mod query;
mod row;
mod rules;
mod syntax;
mod token;
mod validate;
mod value;

pub use attributes::{
    Attribute, Attributes, CUSTOM_KINDS, Kind, SYSTEM, field_of, free_field, is_reserved, kind_name, may_be_set,
};
pub use count::{Count, count};
pub use list::{Page, Request, Rows, list};
pub use query::{Field, Query, QueryError};
pub use row::row_of;
pub use rules::{check_rule, rule_matches};
pub use validate::{Refusal, check};

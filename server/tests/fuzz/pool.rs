//! Values that the server has given out: nonsense made of them gets further.

use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use perdure_proto::perdure::node::v1::{TaskToken, task_token::Kind};
use prost::Message;
use prost_reflect::{DynamicMessage, Value};

const KEPT: usize = 64;

#[derive(Default)]
struct Values {
    task_tokens: Vec<Bytes>,
    page_tokens: Vec<Bytes>,
    run_ids: Vec<String>,
}

pub struct Pool {
    /// Tokens of tasks that nobody here may answer: only damaged copies are used.
    untouchable: Vec<Bytes>,
    values: Mutex<Values>,
}

impl Pool {
    pub fn new(untouchable: Vec<Bytes>) -> Self {
        Self { untouchable, values: Mutex::default() }
    }

    fn values(&self) -> MutexGuard<'_, Values> {
        self.values.lock().unwrap()
    }

    pub fn untouchable(&self, index: u64) -> Bytes {
        self.untouchable[index as usize % self.untouchable.len()].clone()
    }

    /// Whether a damaged token says the same as one of those.
    pub fn is_untouchable(&self, token: &Bytes) -> bool {
        let meaning = |token: &Bytes| TaskToken::decode(token.clone()).ok();
        meaning(token).is_some_and(|said| self.untouchable.iter().any(|other| meaning(other).as_ref() == Some(&said)))
    }

    /// A token of that kind. It is taken out: a task is answered once, and others may have more luck with another one.
    pub fn take_task_token(&self, kind: Kind) -> Option<Bytes> {
        let tokens = &mut self.values().task_tokens;
        let found = tokens.iter().rposition(|token| kind_of(token) == Some(kind))?;
        Some(tokens.remove(found))
    }

    pub fn task_token(&self, index: u64) -> Option<Bytes> {
        nth(&self.values().task_tokens, index)
    }

    pub fn page_token(&self, index: u64) -> Option<Bytes> {
        nth(&self.values().page_tokens, index)
    }

    pub fn run_id(&self, index: u64) -> Option<String> {
        nth(&self.values().run_ids, index)
    }

    /// Keeps the tokens and ids of a response.
    pub fn harvest(&self, message: &DynamicMessage) {
        for (field, value) in message.fields() {
            match (field.name(), value) {
                ("task_token", Value::Bytes(token)) => keep(&mut self.values().task_tokens, token.clone()),
                ("next_page_token", Value::Bytes(token)) => keep(&mut self.values().page_tokens, token.clone()),
                ("run_id", Value::String(run_id)) => keep(&mut self.values().run_ids, run_id.clone()),
                (_, Value::Message(inner)) => self.harvest(inner),
                (_, Value::List(values)) => {
                    values.iter().filter_map(Value::as_message).for_each(|inner| self.harvest(inner));
                }
                _ => {}
            }
        }
    }
}

fn kind_of(token: &Bytes) -> Option<Kind> {
    TaskToken::decode(token.clone()).ok().map(|token| token.kind())
}

fn nth<T: Clone>(values: &[T], index: u64) -> Option<T> {
    (!values.is_empty()).then(|| values[index as usize % values.len()].clone())
}

/// Newer ones are of more use.
fn keep<T: PartialEq>(values: &mut Vec<T>, value: T) {
    if !values.contains(&value) {
        if values.len() == KEPT {
            values.remove(0);
        }
        values.push(value);
    }
}

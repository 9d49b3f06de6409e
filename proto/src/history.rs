//! A history in a message. What a shard has of it is encoded already, in its log, and goes as it is into the answers:
//! nobody on the way looks at events.

use bytes::{Buf, BufMut, Bytes};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, message, skip_field},
};

use crate::temporal::api::history::v1::HistoryEvent;

/// The number of `temporal.api.history.v1.History.events`.
const EVENTS: u32 = 1;

/// `temporal.api.history.v1.History`. Who decodes one finds all in `events`.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct History {
    /// Events before the others, as an encoded `History`. Only who made this value may have put some here.
    pub encoded: Bytes,
    pub events: Vec<HistoryEvent>,
}

impl History {
    pub fn new(events: Vec<HistoryEvent>) -> Self {
        Self { encoded: Bytes::new(), events }
    }

    /// All events.
    pub fn into_events(self) -> Result<Vec<HistoryEvent>, DecodeError> {
        if self.encoded.is_empty() {
            return Ok(self.events);
        }
        let mut all = Self::decode(self.encoded)?.events;
        all.extend(self.events);
        Ok(all)
    }
}

impl Message for History {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.encoded);
        message::encode_repeated(EVENTS, &self.events, buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            EVENTS => message::merge_repeated(wire_type, &mut self.events, buf, ctx),
            _ => skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        self.encoded.len() + message::encoded_len_repeated(EVENTS, &self.events)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event_id: i64) -> HistoryEvent {
        HistoryEvent { event_id, ..HistoryEvent::default() }
    }

    #[test]
    fn encoded_events_are_as_good_as_others() {
        let plain = History::new(vec![event(1), event(2), event(3)]);
        let begun = History::new(vec![event(1), event(2)]).encode_to_vec().into();
        let mixed = History { encoded: begun, events: vec![event(3)] };
        assert_eq!(mixed.encoded_len(), plain.encoded_len());
        assert_eq!(mixed.encode_to_vec(), plain.encode_to_vec());
        assert_eq!(History::decode(mixed.encode_to_vec().as_slice()), Ok(plain.clone()));
        assert_eq!(mixed.into_events(), Ok(plain.events));
    }
}

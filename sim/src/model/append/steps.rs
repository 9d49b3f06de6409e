//! What each step does, and which can be taken.

use super::{Action, Append, Broken, Fencer, Heard, MAX_ROWS, NOTHING_HEARD, QUORUM, REPLICAS, Row, State, WRITER};

/// Length of the prefix of set bits.
fn prefix(mask: u8) -> u8 {
    mask.trailing_ones() as u8
}

impl Append {
    /// One replica's part of a read by `reader`; true when the read has heard enough.
    fn hear(&self, state: &mut State, reader: usize, replica: usize, heard: &mut Heard, needed: u8) -> bool {
        let asked = &mut state.replicas[replica];
        asked.heard_by[reader] = true;
        heard.replies += 1;
        heard.session = heard.session.max(asked.session);
        for (row, content) in asked.log.iter().enumerate() {
            heard.log |= u8::from(*content != 0) << row;
        }
        heard.replies >= needed
    }

    /// The read returns: what it heard of the session's row is on all that it asked (G1).
    fn finish(&self, state: &mut State, reader: usize, heard: &Heard) {
        for replica in &mut state.replicas {
            if std::mem::take(&mut replica.heard_by[reader]) && !self.is(Broken::G1NoReadRepair) {
                replica.session = replica.session.max(heard.session);
            }
        }
    }

    fn decide(state: &mut State, row: Row) {
        state.decided = (state.decided.0 + 1, row);
    }

    /// A4: what the writer tells the world.
    fn show(&self, state: &mut State) {
        let writer = &state.writer;
        let shown = match self.broken {
            Some(Broken::A4GapAcknowledged) => writer.covered,
            Some(Broken::A4Uncovered) => (1 << prefix(writer.acked)) - 1,
            _ => (1 << prefix(writer.covered)) - 1,
        };
        for row in 0..MAX_ROWS {
            // What was shown stays shown: a second content of it shows at the replicas.
            if shown & (1 << row) != 0 && state.shown[row] == 0 {
                state.shown[row] = writer.content;
            }
        }
    }

    fn fence_reply(&self, state: &mut State, replica: usize) -> Option<()> {
        let (covers, mut heard) = state.writer.fence?;
        let needed = if self.is(Broken::G1FenceReadAtOne) { 1 } else { QUORUM };
        if !self.hear(state, WRITER, replica, &mut heard, needed) {
            state.writer.fence = Some((covers, heard));
            return Some(());
        }
        self.finish(state, WRITER, &heard);
        state.writer.fence = None;
        let live = match heard.session.1 {
            Row::Live => true,
            Row::Missing => self.is(Broken::G4MissingIsLive),
            Row::Fenced | Row::Sealed(_) => self.is(Broken::A3FencedGoesOn),
        };
        if live {
            let late = self.is(Broken::A3CoversLateAcks) || self.is(Broken::A3FencedGoesOn);
            state.writer.covered |= if late { state.writer.acked } else { covers };
            self.show(state);
        } else {
            state.writer.stopped = true;
        }
        Some(())
    }

    fn see_reply(&self, state: &mut State, fencer: usize, replica: usize) -> Option<()> {
        let Fencer::Seeing(mut heard) = state.fencers[fencer] else { return None };
        state.fencers[fencer] = if self.hear(state, 1 + fencer, replica, &mut heard, QUORUM) {
            self.finish(state, 1 + fencer, &heard);
            // Not shown yet: read again.
            if heard.session.1 == Row::Live { Fencer::Seeing(NOTHING_HEARD) } else { Fencer::Scanning(NOTHING_HEARD) }
        } else {
            Fencer::Seeing(Heard { log: 0, ..heard })
        };
        Some(())
    }

    fn scan_reply(&self, state: &mut State, fencer: usize, replica: usize) -> Option<()> {
        let Fencer::Scanning(mut heard) = state.fencers[fencer] else { return None };
        let needed = if self.is(Broken::F2ScanAtOne) { 1 } else { QUORUM };
        let session = heard.session;
        let done = self.hear(state, 1 + fencer, replica, &mut heard, needed);
        heard.session = session;
        state.fencers[fencer] = if done {
            for replica in &mut state.replicas {
                replica.heard_by[1 + fencer] = false;
            }
            let end = prefix(heard.log);
            let watermark = state.writer.header[..usize::from(end)].iter().copied().max().unwrap_or(0);
            Fencer::WritingAgain { end, above: watermark.max(end.saturating_sub(self.window)) }
        } else {
            Fencer::Scanning(heard)
        };
        Some(())
    }

    fn look(&self, state: &mut State, fencer: usize) -> Option<()> {
        state.fencers[fencer] = match state.decided.1 {
            Row::Missing => return None,
            Row::Live if state.fence_under_way => return None,
            Row::Live => {
                state.fence_under_way = true;
                Fencer::Looking
            }
            Row::Fenced if self.is(Broken::F1ScanBeforeSeen) => Fencer::Scanning(NOTHING_HEARD),
            Row::Fenced => Fencer::Seeing(NOTHING_HEARD),
            Row::Sealed(end) => Fencer::Knows(end),
        };
        Some(())
    }

    fn issue(&self, state: &mut State) {
        let writer = &mut state.writer;
        // The row that is left out is never sent; those after it are.
        if self.is(Broken::A2NumberSkipped) && writer.issued == 0 {
            writer.issued = 1;
            writer.acked |= 1;
        }
        let row = usize::from(writer.issued);
        writer.header[row] = prefix(writer.acked);
        writer.sent[row] |= 1 << writer.content;
        writer.issued += 1;
    }

    pub(super) fn step(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::ProposeSession => {
                state.creations_proposed += 1;
                state.creations_under_way += 1;
            }
            Action::DecideSession => {
                state.creations_under_way -= 1;
                Self::decide(state, Row::Live);
            }
            Action::Begin => state.writer.running = true,
            Action::Restart => {
                let writer = &mut state.writer;
                (writer.restarted, writer.content) = (true, 2);
                (writer.issued, writer.acked, writer.covered, writer.fence) = (0, 0, 0, None);
                for replica in &mut state.replicas {
                    replica.heard_by[WRITER] = false;
                }
            }
            Action::Issue => self.issue(state),
            Action::SendOther(row) => state.writer.sent[usize::from(row)] |= 1 << 2,
            Action::Arrive(replica, row, content) => state.replicas[replica].log[usize::from(row)] = content,
            Action::Commit(replica) => state.replicas[replica].session = state.decided,
            Action::Ack(row) => {
                state.writer.acked |= 1 << row;
                if self.is(Broken::A4Uncovered) {
                    self.show(state);
                }
            }
            Action::SendFenceRead => state.writer.fence = Some((state.writer.acked, NOTHING_HEARD)),
            Action::LoseFenceRead => {
                state.writer.fence = None;
                for replica in &mut state.replicas {
                    replica.heard_by[WRITER] = false;
                }
            }
            Action::FenceReply(replica) => self.fence_reply(state, replica)?,
            Action::DecideFence => Self::decide(state, Row::Fenced),
            Action::Look(fencer) => self.look(state, fencer)?,
            Action::TakeForDone(fencer) => state.fencers[fencer] = Fencer::Scanning(NOTHING_HEARD),
            Action::SeeReply(fencer, replica) => self.see_reply(state, fencer, replica)?,
            Action::ScanReply(fencer, replica) => self.scan_reply(state, fencer, replica)?,
            Action::WrittenAgain(fencer) => {
                let Fencer::WritingAgain { end, .. } = state.fencers[fencer] else { return None };
                state.seals_under_way |= 1 << end;
                state.fencers[fencer] = Fencer::Sealing { end };
            }
            Action::DecideSeal(end) => {
                Self::decide(state, Row::Sealed(end));
                state.end = state.end.or(Some(end));
            }
            Action::LearnSeal(fencer) => {
                let (Fencer::Sealing { end: own }, Row::Sealed(end)) = (state.fencers[fencer], state.decided.1) else {
                    return None;
                };
                state.fencers[fencer] = Fencer::Knows(if self.is(Broken::F3OwnEnd) { own } else { end });
            }
            Action::DeleteSession => Self::decide(state, Row::Missing),
        }
        Some(())
    }

    pub(super) fn writer_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let writer = &state.writer;
        let proposals = if self.is(Broken::G4CreatedTwice) { 2 } else { 1 };
        if !writer.running && state.creations_proposed < proposals {
            actions.push(Action::ProposeSession);
        }
        if !writer.running {
            // A1: decided, and on a quorum.
            let seen = state.replicas.iter().filter(|replica| replica.session.1 == Row::Live).count();
            if seen >= usize::from(QUORUM) && state.decided.1 == Row::Live {
                actions.push(Action::Begin);
            }
            return;
        }
        if self.is(Broken::A1RestartKeepsSession) && !writer.restarted {
            actions.push(Action::Restart);
        }
        if writer.stopped {
            return;
        }
        let in_flight = writer.issued - prefix(writer.acked).min(writer.issued);
        let window = if self.is(Broken::A2TooManyInFlight) { MAX_ROWS as u8 } else { self.window };
        if writer.issued < self.rows && in_flight < window {
            actions.push(Action::Issue);
        }
        for row in (0..writer.issued).filter(|row| writer.acked & (1 << row) == 0) {
            let needed = if self.is(Broken::G1AppendAtOne) { 1 } else { QUORUM };
            if Self::holders(state, row) >= needed {
                actions.push(Action::Ack(row));
            }
            if self.is(Broken::G2RetryDiffers) && writer.sent[usize::from(row)] == 1 << 1 {
                actions.push(Action::SendOther(row));
            }
        }
        match writer.fence {
            None if writer.acked & !writer.covered != 0 => actions.push(Action::SendFenceRead),
            None => {}
            Some(_) => {
                actions.push(Action::LoseFenceRead);
                actions.extend(Self::silent(state, WRITER).map(Action::FenceReply));
            }
        }
    }

    /// Replicas that a read has not heard.
    fn silent(state: &State, reader: usize) -> impl Iterator<Item = usize> {
        (0..REPLICAS).filter(move |replica| !state.replicas[*replica].heard_by[reader])
    }

    pub(super) fn fencer_actions(&self, state: &State, fencer: usize, actions: &mut Vec<Action>) {
        match state.fencers[fencer] {
            Fencer::Looking => {
                actions.push(Action::Look(fencer));
                if self.is(Broken::G3UnknownTakenForDone) && state.fence_under_way {
                    actions.push(Action::TakeForDone(fencer));
                }
            }
            Fencer::Seeing(_) => {
                actions.extend(Self::silent(state, 1 + fencer).map(|replica| Action::SeeReply(fencer, replica)));
            }
            Fencer::Scanning(_) => {
                actions.extend(Self::silent(state, 1 + fencer).map(|replica| Action::ScanReply(fencer, replica)));
            }
            Fencer::WritingAgain { end, above } => {
                // What was sent once may arrive anywhere, so writing again is to wait until it has.
                let unnecessary = self.is(Broken::F2NotWrittenAgain);
                if unnecessary || (above..end).all(|row| Self::holders(state, row) >= QUORUM) {
                    actions.push(Action::WrittenAgain(fencer));
                }
            }
            Fencer::Sealing { .. } => actions.push(Action::LearnSeal(fencer)),
            Fencer::Knows(_) => {
                if matches!(state.decided.1, Row::Sealed(_)) {
                    actions.push(Action::DeleteSession);
                }
            }
        }
    }

    pub(super) fn store_actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (index, replica) in state.replicas.iter().enumerate() {
            // Replicas are interchangeable.
            if state.replicas[..index].contains(replica) {
                continue;
            }
            if replica.session.0 < state.decided.0 {
                actions.push(Action::Commit(index));
            }
            for row in 0..MAX_ROWS as u8 {
                let (stored, sent) = (replica.log[usize::from(row)], state.writer.sent[usize::from(row)]);
                // Of two contents with one timestamp, the larger stays.
                let newer = |content: &u8| sent & (1 << content) != 0 && *content > stored;
                actions.extend((1..=2).filter(newer).map(|content| Action::Arrive(index, row, content)));
            }
        }
        match state.decided.1 {
            Row::Missing if state.creations_under_way > 0 => actions.push(Action::DecideSession),
            Row::Live if state.fence_under_way => actions.push(Action::DecideFence),
            Row::Missing | Row::Live => {}
            Row::Fenced => self.seal_actions(state, actions),
            Row::Sealed(_) if self.is(Broken::F3LastSealWins) => self.seal_actions(state, actions),
            Row::Sealed(_) => {}
        }
    }

    fn seal_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let ends = (0..=self.rows).filter(|end| state.seals_under_way & (1 << end) != 0);
        actions.extend(ends.filter(|end| state.decided.1 != Row::Sealed(*end)).map(Action::DecideSeal));
    }
}

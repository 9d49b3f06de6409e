//! Who deletes sessions that nobody needs.

use super::{
    Broken, Shards,
    state::{Action, CleanStep, Cleaner, Life, State},
};

impl Shards {
    pub(super) fn cleaner_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if !self.clean {
            return;
        }
        match state.cleaner {
            Cleaner::Idle => actions.push(Action::Clean(CleanStep::First)),
            Cleaner::Listed(_) => actions.push(Action::Clean(CleanStep::Second)),
            Cleaner::Deletes(sessions) => {
                let chosen = (0..self.sessions).filter(|x| sessions & (1 << x) != 0);
                actions.extend(chosen.map(|x| Action::Clean(CleanStep::Delete(x))));
            }
        }
    }

    /// Sealed sessions first, then what shards name: what is not named after its seal is never needed again.
    pub(super) fn clean(&self, state: &mut State, step: CleanStep) -> Option<()> {
        let wrong_order = self.is(Broken::M3ShardsListedFirst);
        state.cleaner = match (step, state.cleaner) {
            (CleanStep::First, Cleaner::Idle) if wrong_order => Cleaner::Listed(named(state)),
            (CleanStep::First, Cleaner::Idle) => match sealed(state) {
                0 => return None,
                sealed => Cleaner::Listed(sealed),
            },
            (CleanStep::Second, Cleaner::Listed(listed)) => {
                let unneeded = match self.broken {
                    Some(Broken::M3ShardsListedFirst) => sealed(state) & !listed,
                    Some(Broken::G4DeletedWhileNamed) => listed,
                    _ => listed & !named(state),
                };
                if unneeded == 0 { Cleaner::Idle } else { Cleaner::Deletes(unneeded) }
            }
            (CleanStep::Delete(x), Cleaner::Deletes(sessions)) => {
                state.sessions[x].life = Life::Gone;
                match sessions & !(1 << x) {
                    0 => Cleaner::Idle,
                    rest => Cleaner::Deletes(rest),
                }
            }
            (CleanStep::First | CleanStep::Second | CleanStep::Delete(_), _) => return None,
        };
        Some(())
    }
}

fn sealed(state: &State) -> u8 {
    let sealed = |x: &usize| matches!(state.sessions[*x].life, Life::Sealed(_));
    (0..state.sessions.len()).filter(sealed).fold(0, |mask, x| mask | 1 << x)
}

/// Sessions that a shard names as its owner or a source.
fn named(state: &State) -> u8 {
    let siblings = state.shards.iter().filter_map(|shard| shard.split.as_ref()?.sibling.as_deref());
    let rows: Vec<_> = state.shards.iter().chain(siblings).collect();
    let sources = rows.iter().flat_map(|shard| shard.sources.iter().map(|source| source.session));
    let owners = rows.iter().filter_map(|shard| shard.owner);
    sources.chain(owners).fold(0, |mask, x| mask | 1 << x)
}

//! Containers that remember what a transition changed: for its delta when it is committed, for undoing when it is not.

use std::{collections::BTreeMap, ops::Deref};

/// A map whose changes since the last commit are known.
#[derive(Debug, Clone)]
pub(crate) struct Tracked<K, V> {
    map: BTreeMap<K, V>,
    /// What stood at each touched key before the transition. Boxed: a node has room for eleven, and most transitions touch one.
    before: BTreeMap<K, Option<Box<V>>>,
}

impl<K, V> Default for Tracked<K, V> {
    fn default() -> Self {
        Self { map: BTreeMap::new(), before: BTreeMap::new() }
    }
}

impl<K: Ord + Clone, V: Clone> Tracked<K, V> {
    fn touch(&mut self, key: &K) {
        if !self.before.contains_key(key) {
            self.before.insert(key.clone(), self.map.get(key).cloned().map(Box::new));
        }
    }

    pub fn insert(&mut self, key: K, value: V) {
        self.touch(&key);
        self.map.insert(key, value);
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        if self.map.contains_key(key) {
            self.touch(key);
        }
        self.map.remove(key)
    }

    /// For change; reading through [`Deref`] is not recorded.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        if self.map.contains_key(key) {
            self.touch(key);
        }
        self.map.get_mut(key)
    }

    /// Ends the transition: after-images of what it wrote, and keys of what it removed.
    pub fn commit(&mut self) -> (Vec<V>, Vec<K>) {
        let (mut written, mut removed) = (Vec::new(), Vec::new());
        for (key, before) in std::mem::take(&mut self.before) {
            match self.map.get(&key) {
                Some(value) => written.push(value.clone()),
                None if before.is_some() => removed.push(key),
                None => {}
            }
        }
        (written, removed)
    }

    pub fn roll_back(&mut self) {
        for (key, before) in std::mem::take(&mut self.before) {
            match before {
                Some(value) => self.map.insert(key, *value),
                None => self.map.remove(&key),
            };
        }
    }

    pub fn is_clean(&self) -> bool {
        self.before.is_empty()
    }

    /// Replay: changes that are durable already.
    pub fn restore(&mut self, key: K, value: Option<V>) {
        match value {
            Some(value) => self.map.insert(key, value),
            None => self.map.remove(&key),
        };
    }
}

impl<K, V> Deref for Tracked<K, V> {
    type Target = BTreeMap<K, V>;
    fn deref(&self) -> &BTreeMap<K, V> {
        &self.map
    }
}

/// A single value whose change since the last commit is known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Value<T> {
    value: T,
    /// Boxed: a run at rest does not hold room for it.
    before: Option<Box<T>>,
}

impl<T: Clone + PartialEq> Value<T> {
    pub fn new(value: T) -> Self {
        Self { value, before: None }
    }

    /// For change; reading through [`Deref`] is not recorded.
    pub fn edit(&mut self) -> &mut T {
        if self.before.is_none() {
            self.before = Some(Box::new(self.value.clone()));
        }
        &mut self.value
    }

    pub fn before(&self) -> Option<&T> {
        self.before.as_deref()
    }

    /// Ends the transition: the after-image if it differs.
    pub fn commit(&mut self) -> Option<T> {
        let before = self.before.take()?;
        (*before != self.value).then(|| self.value.clone())
    }

    /// Ends the transition; its after-image is read elsewhere, or not at all.
    pub fn settle(&mut self) {
        self.before = None;
    }

    pub fn roll_back(&mut self) {
        if let Some(before) = self.before.take() {
            self.value = *before;
        }
    }

    /// Replay: a change that is durable already.
    pub fn restore(&mut self, value: T) {
        self.value = value;
    }
}

impl<T> Deref for Value<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commit_names_writes_and_removals_once() {
        let mut map = Tracked::default();
        map.insert(1, "a");
        map.insert(2, "b");
        assert_eq!(map.commit(), (vec!["a", "b"], vec![]));
        map.remove(&1);
        map.insert(3, "c");
        map.remove(&3);
        assert_eq!(map.commit(), (vec![], vec![1]));
        assert!(map.is_clean());
    }

    #[test]
    fn roll_back_restores_everything() {
        let mut map = Tracked::default();
        map.insert(1, "a");
        map.commit();
        *map.get_mut(&1).expect("there") = "x";
        map.insert(2, "b");
        map.remove(&1);
        map.roll_back();
        assert_eq!(map.iter().collect::<Vec<_>>(), vec![(&1, &"a")]);
    }

    #[test]
    fn a_value_set_back_is_no_change() {
        let mut value = Value::new(1);
        *value.edit() = 2;
        *value.edit() = 1;
        assert_eq!(value.commit(), None);
    }
}

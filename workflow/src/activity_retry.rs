//! Retries: whether, and when. Shared by activities and workflows. (W-A)

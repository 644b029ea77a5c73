//! What was asked, what happens next?

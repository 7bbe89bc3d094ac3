//! Study: bytes that a site sends up against AUROC.

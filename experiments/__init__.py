"""Running, comparing and loading: the only package that knows methods and data modules."""

import warnings

# Before lightning is imported: these come from inside the libraries and tell the user nothing to act on.
warnings.filterwarnings("ignore", ".*LeafSpec.*")  # torch deprecates what lightning uses
warnings.filterwarnings("ignore", ".*not resumable.*")  # EpochSampler resumes by itself
warnings.filterwarnings("ignore", ".*does not have many workers.*")  # num_workers is the user's choice
warnings.filterwarnings("ignore", ".*exists and is not empty.*")  # --resume continues in its directory
warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # teachers always are
warnings.filterwarnings("ignore", ".*isinstance.treespec.*")  # torch's pytree again
warnings.filterwarnings("ignore", ".*`broadcast_buffers` is deprecated.*")  # and lightning has no other way yet
warnings.filterwarnings("ignore", ".*srun. command is available on your system but is not used.*")  # as it may be
warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # torchmetrics has added the counts of all ranks
warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint.*")  # evaluation needs none of them

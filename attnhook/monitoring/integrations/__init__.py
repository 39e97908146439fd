"""Writers and callbacks of other libraries, each of which is imported when its writer is constructed, or its callback's file imported."""

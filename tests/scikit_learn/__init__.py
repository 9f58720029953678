"""`fastmlp.sklearn`, in the place of scikit-learn's own estimators."""

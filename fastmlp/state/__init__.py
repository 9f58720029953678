"""What training changes of a model, and who may change it when."""

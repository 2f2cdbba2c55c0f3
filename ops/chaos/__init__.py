"""Random faults under load: engines, Redis and the gateway are disturbed while clients compare every answer with
the one right text. `run` plays a scenario on a `stage`; `faults` and `hostile` are the faults, `lies` what an
engine may answer wrongly, `verdict` judges one answer, `report` has the rows."""
